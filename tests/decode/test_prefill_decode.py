"""One prompt computed by a prefill worker and continued by a decode worker, step by step."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from services.errors import InvalidRequest
from services.faults.plan import Action
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from tests.inprocess.client import GREEDY, SEEDED, begin, expected, expected_ids, generate, prompt
from tests.inprocess.cluster import Worker, cluster, until
from tests.inprocess.faults import scripted

NUM_BLOCKS_OF_30 = 8


def has_arrived(worker: Worker, num_blocks: int) -> bool:
    """Whether the one open attempt of a decode worker has got so many blocks."""
    return [arrival.num_arrived for arrival in worker.arrivals._open.values()] == [num_blocks]


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 9, 30])
async def test_a_prompt_computed_by_a_peer_goes_on_as_if_computed_here(num_tokens: int, params: SamplingParams) -> None:
    async with cluster() as running:
        answer = await generate(running, prompt(num_tokens), params)
        assert answer.ids == expected_ids(prompt(num_tokens), params)
        assert (answer.proof.path, answer.proof.prefill) == ("pd", running.prefill.node.member_id)
        assert answer.proof.transferred_tokens == num_tokens
        assert (answer.proof.cached_tokens, answer.proof.recomputed_tokens, answer.proof.attempts) == (0, 0, 1)
        assert running.prefill.model.num_computed_tokens == num_tokens
        assert running.decode.model.num_computed_tokens == params.max_tokens - 1
        await running.settled()


async def test_every_block_moves_once() -> None:
    async with cluster() as running:
        answer = await generate(running, prompt(30))
        assert answer.proof.kv_bytes == NUM_BLOCKS_OF_30 * running.decode.node.layout.block_bytes
        await running.settled()
        blocks = {"transport": "inproc", "direction": "sent"}
        assert running.prefill.counted("transferred_blocks", **blocks) == NUM_BLOCKS_OF_30
        assert running.decode.counted("prefill_attempts", outcome="arrived") == 1


async def test_a_prefix_that_decode_has_is_not_pushed_again() -> None:
    async with cluster() as running:
        await generate(running, prompt(30))
        answer = await generate(running, prompt(50))
        assert answer.ids == expected_ids(prompt(50))
        assert (answer.proof.cached_tokens, answer.proof.transferred_tokens) == (28, 22)
        await running.settled()
        sent = running.prefill.counted("transferred_blocks", transport="inproc", direction="sent")
        assert sent == NUM_BLOCKS_OF_30 + 6


async def test_a_prefix_that_prefill_has_is_pushed_before_its_next_step() -> None:
    async with cluster() as running:
        await generate(running, prompt(30))
        other = await running.add_decode()
        running.prefill.model.gate.close()
        call = begin(running, prompt(30), worker=other)
        await call.read_until("accepted")
        await until(partial(has_arrived, other, 7))
        assert running.prefill.model.num_computed_tokens == 30
        running.prefill.model.gate.open()
        answer = await call.finish()
        assert answer.proof.prefill_cached_tokens == 28
        assert answer.ids == expected_ids(prompt(30))
        await running.settled()


async def test_chunks_are_pushed_while_the_next_one_is_computed() -> None:
    async with cluster() as running:
        gate = running.prefill.model.gate
        gate.close()
        call = begin(running, prompt(30))
        await call.read_until("accepted")
        for num_arrived in (2, 4, 6):
            gate.allow(1)
            await until(partial(has_arrived, running.decode, num_arrived))
        gate.open()
        await call.finish()
        await running.settled()


async def test_the_first_token_does_not_wait_for_the_data() -> None:
    async with cluster() as running:
        running.prefill.faults.plan = scripted(pushes=dict.fromkeys(range(9), Action.STALL))
        call = begin(running, prompt(30))
        await call.read_tokens(1)
        assert running.decode.model.num_computed_tokens == 0
        await until(lambda: running.prefill.faults.injected[Action.STALL] == 4)
        running.prefill.faults.resume()
        assert (await call.finish()).ids == expected_ids(prompt(30))
        await running.settled()


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("num_emitted", [1, 2, 7, 11])
async def test_a_replay_goes_on_after_the_tokens_that_were_sent(num_emitted: int, params: SamplingParams) -> None:
    whole = expected_ids(prompt(10), params)
    async with cluster() as running:
        answer = await generate(running, prompt(10), params, resumed_output_token_ids=whole[:num_emitted])
        assert whole[:num_emitted] + answer.ids == whole
        assert answer.proof.transferred_tokens == 10 + num_emitted
        assert answer.proof.path == "pd"
        await running.settled()


@pytest.mark.parametrize("reason", [pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP])
async def test_a_sequence_may_end_with_its_first_token(reason: int) -> None:
    first = expected_ids(prompt(30))[0]
    params = replace(GREEDY, max_tokens=1)
    if reason == pb.FINISH_REASON_STOP:
        params = replace(GREEDY, stop_token_ids=frozenset({first}))
    async with cluster() as running:
        answer = await generate(running, prompt(30), params)
        assert (answer.ids, answer.reason) == ([first], reason)
        assert [frame for frame in answer.frames if frame != "path"] == ["accepted", "tokens", "finished"]
        assert running.decode.model.num_computed_tokens == 0
        await running.settled()
        assert (await running.decode.ledger()).cached == 7


async def test_log_probabilities_are_those_of_a_local_answer() -> None:
    params = replace(SEEDED, logprobs=3)
    async with cluster() as running:
        answer = await generate(running, prompt(30), params)
        assert answer.tokens == expected(prompt(30), params)
        assert {len(token.top) for token in answer.tokens} == {3}


async def test_short_prompts_stay_home() -> None:
    async with cluster(decode={"local_prefill_tokens": 30}) as running:
        answer = await generate(running, prompt(30))
        assert (answer.proof.path, answer.proof.attempts) == ("local", 0)
        assert (await generate(running, prompt(31, seed=5))).proof.path == "pd"
        await running.settled()


async def test_a_busy_engine_delays_a_reservation_by_one_step_only() -> None:
    async with cluster() as running:
        gate = running.decode.model.gate
        gate.close()
        stream = begin(running, prompt(5), replace(GREEDY, max_tokens=100))
        await until(lambda: gate.num_waiting)
        call = begin(running, prompt(30))
        await until(lambda: running.decode.node.engine._inbox.qsize())
        gate.allow(1)
        await call.read_tokens(1)
        gate.open()
        await call.finish()
        stream.cancel()
        await running.settled()


async def test_projects_share_no_blocks() -> None:
    async with cluster() as running:
        await generate(running, prompt(30), project="one")
        answer = await generate(running, prompt(30), project="two")
        assert (answer.proof.cached_tokens, answer.proof.prefill_cached_tokens) == (0, 0)
        assert answer.ids == expected_ids(prompt(30))


async def test_a_request_id_in_use_is_refused_and_its_owner_undisturbed() -> None:
    async with cluster() as running:
        running.decode.model.gate.close()
        first = begin(running, prompt(30), request_id="twice")
        await first.read_tokens(1)
        with pytest.raises(InvalidRequest):
            await generate(running, prompt(9), request_id="twice")
        running.decode.model.gate.open()
        assert (await first.finish()).ids == expected_ids(prompt(30))
        await running.settled()


async def test_many_at_once_answer_as_each_alone() -> None:
    prompts = [prompt(5 + 3 * index, seed=index % 4) for index in range(8)]
    wanted = [expected_ids(token_ids, SEEDED) for token_ids in prompts]
    async with cluster(prefills=2) as running:
        answers = await asyncio.gather(*(generate(running, token_ids, SEEDED) for token_ids in prompts))
        assert [answer.ids for answer in answers] == wanted
        await running.settled()
