"""Prefill workers that fail, refuse or lie: the same tokens come nevertheless, or an honest error."""

import socket
from collections.abc import Sequence

import pytest

from services.engine.blocks import Claim, Reason
from services.errors import (
    IncompatiblePeer,
    NoPrefillWorker,
    Overloaded,
    PayloadDigestMismatch,
    PeerStalled,
    TokenDivergence,
)
from services.faults.plan import Action
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from tests.inprocess.client import GREEDY, SEEDED, Answer, begin, expected_ids, generate, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster, until
from tests.inprocess.faults import scripted
from tests.inprocess.hash_model import layout

SOON = {"prefill_step_timeout_s": 1.0}
"""A deadline that a test wants to pass."""


def first_tokens_sent(answer: Answer) -> int:
    return len(answer.ids) - (GREEDY.max_tokens - 1)


async def assert_same(running: Cluster, answer: Answer, params: SamplingParams = GREEDY) -> None:
    """The answer to ``prompt(30)`` is the undisturbed one, and nothing is left behind."""
    assert answer.ids == expected_ids(prompt(30), params)
    assert answer.proof.cached_tokens + answer.proof.transferred_tokens + answer.proof.recomputed_tokens == 30
    await running.settled()


class TestWhatArrives:
    @pytest.mark.parametrize("number", range(4))
    async def test_a_flipped_bit_is_counted_and_computed_again(self, number: int) -> None:
        async with cluster() as running:
            running.prefill.faults.plan = scripted(pushes={number: Action.CORRUPT})
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.reason) == ("fallback", PayloadDigestMismatch.code)
            assert running.prefill.faults.injected == {Action.CORRUPT: 1}
            await assert_same(running, answer)
            assert running.decode.counted("integrity_failures", kind=PayloadDigestMismatch.code) == 1
            assert running.decode.counted("fallbacks", reason=PayloadDigestMismatch.code) == 1

    async def test_what_arrived_before_a_flipped_bit_is_kept(self) -> None:
        async with cluster() as running:
            running.prefill.faults.plan = scripted(pushes={2: Action.CORRUPT})
            answer = await generate(running, prompt(30))
            assert (answer.proof.transferred_tokens, answer.proof.recomputed_tokens) == (16, 14)
            assert running.decode.model.num_computed_tokens == 14 + GREEDY.max_tokens - 1
            await assert_same(running, answer)

    async def test_a_dropped_notice_is_a_stall(self) -> None:
        async with cluster(decode=SOON) as running:
            running.decode.faults.plan = scripted(notices={1: Action.DROP})
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.reason) == ("fallback", PeerStalled.code)
            assert (answer.proof.transferred_tokens, answer.proof.recomputed_tokens) == (8, 22)
            await assert_same(running, answer)

    async def test_a_duplicate_notice_changes_nothing(self) -> None:
        async with cluster() as running:
            running.decode.faults.plan = scripted(notices=dict.fromkeys(range(3), Action.DUPLICATE))
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.transferred_tokens) == ("pd", 30)
            assert running.decode.faults.injected == {Action.DUPLICATE: 3}
            assert running.decode.counted("stale_notices") == 0
            await assert_same(running, answer)

    async def test_a_notice_that_comes_after_the_end_is_counted_as_stale(self) -> None:
        async with cluster() as running:
            running.decode.faults.plan = scripted(notices={3: Action.DUPLICATE})
            answer = await generate(running, prompt(30))
            await until(lambda: running.decode.faults.injected == {Action.DUPLICATE: 1})
            assert answer.proof.path == "pd"
            await assert_same(running, answer)
            assert running.decode.counted("stale_notices") <= 1

    async def test_late_notices_of_an_attempt_that_was_left_are_counted_and_change_nothing(self) -> None:
        async with cluster(decode=SOON) as running:
            running.prefill.faults.plan = scripted(pushes=dict.fromkeys(range(4), Action.STALL))
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.reason) == ("fallback", PeerStalled.code)
            assert (await running.decode.ledger()).quarantined == 8
            running.prefill.faults.resume()
            await assert_same(running, answer)
            await until(lambda: running.decode.counted("stale_notices") == 4)

    @pytest.mark.parametrize("fault", [{"pushes": {0: Action.DROP}}, {"ends": {0: Action.CORRUPT}}])
    async def test_a_push_that_failed_fails_its_attempt_and_is_counted(
        self, fault: dict[str, dict[int, Action]]
    ) -> None:
        async with cluster() as running:
            running.prefill.faults.plan = scripted(**fault)
            answer = await generate(running, prompt(30))
            assert answer.proof.path in ("pd", "fallback")
            assert "ends" in fault or answer.proof.path == "fallback"
            await assert_same(running, answer)
            assert running.prefill.counted("push_failures", code="peer_gone") == 1

    async def test_digests_can_be_turned_off_and_the_answer_says_so(self) -> None:
        off = {"payload_digests": False}
        async with cluster(prefill=off, decode=off) as running:
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.verified) == ("pd", False)
            await assert_same(running, answer)


class TestNextCandidate:
    async def test_it_is_asked_only_for_what_did_not_arrive(self) -> None:
        async with cluster(prefills=2, decode=SOON) as running:
            first, second = running.prefills
            first.model.gate.close()
            first.model.gate.allow(2)
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.prefill) == ("pd", second.node.member_id)
            assert (answer.proof.attempts, answer.proof.transferred_tokens) == (2, 30)
            first.model.gate.open()
            await assert_same(running, answer)
            assert second.counted("transferred_blocks", transport="inproc", direction="sent") == 4

    async def test_it_follows_a_flipped_bit(self) -> None:
        async with cluster(prefills=2) as running:
            running.prefill.faults.plan = scripted(pushes={1: Action.CORRUPT})
            answer = await generate(running, prompt(30), SEEDED)
            assert answer.proof.prefill == running.prefills[1].node.member_id
            assert running.decode.counted("integrity_failures", kind=PayloadDigestMismatch.code) == 1
            await assert_same(running, answer, SEEDED)

    @pytest.mark.parametrize("num_steps", range(4))
    async def test_it_follows_a_worker_that_died(self, num_steps: int) -> None:
        async with cluster(prefills=2) as running:
            first, second = running.prefills
            first.model.gate.close()
            call = begin(running, prompt(30))
            first.model.gate.allow(num_steps)
            await until(lambda: first.model.num_computed_tokens == 8 * num_steps and first.model.gate.num_waiting)
            await first.server.stop(None)
            answer = await call.finish()
            assert (answer.proof.path, answer.proof.prefill) == ("pd", second.node.member_id)
            first.model.gate.open()
            await assert_same(running, answer)

    async def test_it_follows_one_whose_engine_broke(self) -> None:
        async with cluster(prefills=2) as running:
            first, second = running.prefills
            first.model.defect = broken_kernel
            answer = await generate(running, prompt(30))
            assert answer.proof.prefill == second.node.member_id
            assert first.defects == ["engine"]
            await assert_same(running, answer)

    async def test_it_follows_one_that_is_full(self) -> None:
        async with cluster(prefills=2, prefill={"max_waiting": 1}) as running:
            await fill(running, running.prefill)
            answer = await generate(running, prompt(30))
            assert (answer.proof.prefill, answer.proof.attempts) == (running.prefills[1].node.member_id, 2)
            assert running.decode.counted("prefill_attempts", outcome="nothing_posted") == 1
            assert running.decode.counted("quarantined_blocks") == 0
            await empty(running.prefill)
            await running.settled()

    async def test_it_follows_one_that_drains(self) -> None:
        async with cluster(prefills=2) as running:
            running.prefill.node.is_draining = True
            answer = await generate(running, prompt(30))
            assert answer.proof.prefill == running.prefills[1].node.member_id
            await assert_same(running, answer)

    async def test_it_follows_one_with_another_layout_before_any_byte(self) -> None:
        async with cluster(prefills=0) as running:
            stranger = await running.add_prefill(Shape(layout=layout("another model")))
            friend = await running.add_prefill()
            answer = await generate(running, prompt(30))
            assert answer.proof.prefill == friend.node.member_id
            assert stranger.model.num_computed_tokens == 0
            assert not stranger.faults.num_pushes
            assert running.decode.counted("quarantined_blocks") == 0
            await assert_same(running, answer)

    async def test_it_follows_one_whose_pool_is_too_small(self) -> None:
        async with cluster(prefills=0) as running:
            await running.add_prefill(Shape(num_blocks=7))
            large = await running.add_prefill(Shape(num_blocks=8))
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.prefill) == ("pd", large.node.member_id)
            await assert_same(running, answer)

    async def test_it_follows_one_whose_address_has_another_process(self) -> None:
        async with cluster(prefills=2) as running:
            first, second = running.prefills
            ghost = pb.PrefillCandidate(member_id="prefill-earlier", address=first.address)
            answer = await generate(running, prompt(30), prefill_candidates=[ghost, second.candidate])
            assert (answer.proof.prefill, first.model.num_computed_tokens) == (second.node.member_id, 0)
            await assert_same(running, answer)

    @pytest.mark.parametrize("address", ["nobody.invalid:1", "", "[::]", "unix:/nowhere", "127.0.0.1:65536"])
    async def test_it_follows_one_that_was_never_reached_and_cannot_write(self, address: str) -> None:
        async with cluster() as running:
            nobody = pb.PrefillCandidate(member_id="nobody", address=address)
            call = begin(running, prompt(30), prefill_candidates=[nobody, running.prefill.candidate])
            answer = await call.finish()
            assert (answer.proof.path, answer.proof.attempts) == ("pd", 2)
            assert (await running.decode.ledger()).quarantined == 0
            await assert_same(running, answer)

    async def test_a_connection_that_is_never_made_is_given_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            async with cluster(decode=SOON) as running:
                silent = pb.PrefillCandidate(member_id="silent", address=f"127.0.0.1:{mute.getsockname()[1]}")
                answer = await begin(running, prompt(30), prefill_candidates=[silent]).finish()
                assert (answer.proof.path, answer.proof.reason) == ("fallback", PeerStalled.code)
                assert (await running.decode.ledger()).quarantined == 0
                await assert_same(running, answer)

    async def test_only_so_many_are_tried(self) -> None:
        async with cluster(prefills=3, decode={"max_prefill_attempts": 2}) as running:
            for worker in running.prefills:
                worker.node.is_draining = True
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.attempts) == ("fallback", 2)
            await assert_same(running, answer)


class TestNobodyLeft:
    async def test_after_failures_the_prompt_is_computed_here_and_the_first_token_sent_once(self) -> None:
        async with cluster() as running:
            running.prefill.faults.plan = scripted(pushes=dict.fromkeys(range(9), Action.STALL))
            call = begin(running, prompt(30))
            await call.read_tokens(1)
            await running.prefill.stop()
            answer = await call.finish()
            assert answer.proof.path == "fallback"
            assert first_tokens_sent(answer) == 1
            assert answer.ids == expected_ids(prompt(30))
            await running.settled(running.decodes)

    async def test_a_worker_that_is_gone_is_a_fallback(self) -> None:
        async with cluster() as running:
            await running.prefill.stop()
            answer = await generate(running, prompt(30))
            assert (answer.proof.path, answer.proof.reason) == ("fallback", "peer_gone")
            assert answer.ids == expected_ids(prompt(30))
            await running.settled(running.decodes)

    async def test_a_channel_that_is_closed_under_a_call_is_a_fallback(self) -> None:
        async with cluster() as running:
            running.prefill.model.gate.close()
            call = begin(running, prompt(30))
            await until(lambda: running.prefill.model.gate.num_waiting)
            await running.decode.channels.forget(running.prefill.address)
            answer = await call.finish()
            assert (answer.proof.path, answer.proof.reason) == ("fallback", "peer_gone")
            running.prefill.model.gate.open()
            await assert_same(running, answer)

    async def test_a_full_pool_is_never_a_fallback(self) -> None:
        async with cluster(prefill={"max_waiting": 1}) as running:
            await fill(running, running.prefill)
            with pytest.raises(Overloaded):
                await generate(running, prompt(30))
            assert running.decode.model.num_computed_tokens == 0
            await empty(running.prefill)
            await running.settled([running.decode, running.prefill])

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    async def test_fullness_anywhere_is_not_outvoted_by_a_failure_elsewhere(self, order: Sequence[int]) -> None:
        async with cluster(prefills=2, prefill={"max_waiting": 1}) as running:
            await fill(running, running.prefill)
            await running.prefills[1].stop()
            with pytest.raises(Overloaded):
                await generate(running, prompt(30), candidates=[running.prefills[index] for index in order])
            assert running.decode.model.num_computed_tokens == 0
            await empty(running.prefill)
            await running.settled([running.decode, running.prefill])

    async def test_whoever_insists_on_a_prefill_worker_gets_the_failure(self) -> None:
        async with cluster() as running:
            with pytest.raises(NoPrefillWorker):
                await generate(running, prompt(30), candidates=(), require_prefill=True)
            await running.settled()
            running.decode.faults.plan = scripted()
            with pytest.raises(IncompatiblePeer):
                ghost = pb.PrefillCandidate(member_id="prefill-earlier", address=running.prefill.address)
                await generate(running, prompt(30), prefill_candidates=[ghost], require_prefill=True)
            await running.settled()

    async def test_a_gateway_with_another_layout_is_refused(self) -> None:
        async with cluster() as running:
            with pytest.raises(IncompatiblePeer):
                await generate(running, prompt(30), fingerprint="another")
            await running.settled()

    async def test_without_blocks_for_another_attempt_the_prompt_waits_to_be_computed_here(self) -> None:
        async with cluster(prefills=3, shape=Shape(num_blocks=12), decode=SOON) as running:
            for worker in running.prefills:
                worker.faults.plan = scripted(pushes=dict.fromkeys(range(1, 9), Action.STALL))
            call = begin(running, prompt(30))
            await until(lambda: running.decode.node.engine.load.num_waiting)
            assert (await running.decode.ledger()).quarantined == 6
            running.prefill.faults.resume()
            answer = await call.finish()
            assert (answer.proof.path, answer.proof.attempts) == ("fallback", 1)
            assert (answer.proof.transferred_tokens, answer.proof.recomputed_tokens) == (8, 22)
            await assert_same(running, answer)


class TestAWrongFirstToken:
    async def test_computed_again_here_it_ends_the_request(self) -> None:
        async with cluster() as running:
            running.prefill.model.salt = b"another model"
            running.decode.faults.plan = scripted()
            running.prefill.faults.plan = scripted(pushes={3: Action.CORRUPT})
            call = begin(running, prompt(30))
            with pytest.raises(TokenDivergence):
                await call.finish()
            assert len(call.answer.ids) == 1
            await running.settled()

    async def test_computed_again_by_the_next_candidate_it_ends_the_request(self) -> None:
        async with cluster(prefills=2) as running:
            running.prefill.model.salt = b"another model"
            running.prefill.faults.plan = scripted(pushes={3: Action.CORRUPT})
            call = begin(running, prompt(30))
            with pytest.raises(TokenDivergence):
                await call.finish()
            assert len(call.answer.ids) == 1
            await running.settled()


def broken_kernel() -> None:
    raise RuntimeError("a broken kernel")


NOBODY = Claim(Reason.USED, "nobody")


async def fill(running: Cluster, worker: Worker) -> None:
    """Let a prefill worker have no block left and, with room for one waiting prompt, one that waits."""
    await worker.node.engine.call(lambda scheduler: scheduler._pool.take(Shape().num_blocks, NOBODY))
    begin(running, prompt(9, seed=7), candidates=[worker]).hold()
    await until(lambda: worker.node.engine.load.num_waiting == 1)


async def empty(worker: Worker) -> None:
    await worker.node.engine.call(lambda scheduler: scheduler._pool.release(NOBODY))
