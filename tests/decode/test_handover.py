"""A decode worker that leaves: its sequences go on elsewhere with their KV, and nobody notices."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from services.errors import Draining, PayloadDigestMismatch
from services.faults.plan import Action
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from tests.inprocess.client import GREEDY, SEEDED, Answer, GenerateCall, begin, expected, generate, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster, until
from tests.inprocess.faults import scripted
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S

AT_ONCE = {"handover_after_s": 0.0}
LOGPROBS = replace(SEEDED, logprobs=2)


@asynccontextmanager
async def two_decoders(*, prefills: int = 1, **settings: Any) -> AsyncIterator[tuple[Cluster, Worker, Worker]]:
    async with cluster(prefills=prefills, decode={**AT_ONCE, **settings}) as running:
        await running.add_decode(**{**AT_ONCE, **settings})
        first, second = running.decodes
        yield running, first, second


def drain(running: Cluster, worker: Worker, timeout_s: float = DEADLINE_S) -> "asyncio.Task[int]":
    async def remaining() -> int:
        with translated():
            reply = await running.channels.admin(worker.address).Drain(pb.DrainRequest(timeout_s=timeout_s))
        return int(reply.remaining)

    return asyncio.create_task(remaining())


async def handed_over(running: Cluster, call: GenerateCall, worker: Worker, num_tokens: int) -> "asyncio.Task[int]":
    """Let ``call`` generate so many tokens on ``worker``, then tell it to leave; the call ends, the drain goes on."""
    worker.model.gate.close()
    worker.model.gate.allow(num_tokens - 1)  # the first one came from the prefill worker
    await call.read_tokens(num_tokens)
    draining = drain(running, worker)
    await let_go(worker)
    await call.read_until("handed_over")
    return draining


async def let_go(worker: Worker) -> None:
    """Let each step end that a hand-over waits for, until one sequence has left."""
    gate, engine = worker.model.gate, worker.node.engine

    def has_left() -> bool:
        return worker.counted("sequences_handed_over") > 0

    while not has_left():
        await until(lambda: has_left() or (gate.holds_a_step and engine._inbox.qsize()))
        gate.allow(1)


async def commands_wait(worker: Worker, count: int) -> None:
    """Wait until so many commands wait for the end of a step that stands at the gate."""
    await until(lambda: worker.model.gate.holds_a_step and worker.node.engine._inbox.qsize() >= count)


def source_of(worker: Worker, answer: Answer) -> pb.KVSource:
    assert answer.handed_over is not None
    source = worker.source
    source.kept_as = answer.handed_over.kept_as
    return source


def going_on(running: Cluster, call: GenerateCall, source: pb.KVSource, worker: Worker, **fields: Any) -> GenerateCall:
    """Start what ``call`` was on ``worker``, after the tokens that it has."""
    request = pb.GenerateRequest()
    request.CopyFrom(call.request)
    request.request_id += "~1"
    request.resumed_output_token_ids.extend(call.answer.ids)
    request.kv_source.CopyFrom(source)
    if "candidates" in fields:
        del request.prefill_candidates[:]
    return GenerateCall(running, request, worker)


def whole(num_tokens: int) -> int:
    return num_tokens - num_tokens % BLOCK_SIZE


class TestASequence:
    @pytest.mark.parametrize("params", [GREEDY, SEEDED, LOGPROBS], ids=["greedy", "seeded", "logprobs"])
    @pytest.mark.parametrize("num_tokens", [1, 2, 3, 6, 10])
    async def test_goes_on_at_a_peer_with_its_kv_and_the_same_tokens(
        self, params: SamplingParams, num_tokens: int
    ) -> None:
        async with two_decoders() as (running, first, second):
            call = begin(running, prompt(30), params)
            draining = await handed_over(running, call, first, num_tokens)
            num_known = 30 + len(call.answer.ids)
            assert not draining.done()
            answer = await going_on(running, call, source_of(first, call.answer), second).finish()
            assert call.answer.tokens + answer.tokens == expected(prompt(30), params)
            num_moved = whole(num_known - 1)
            assert (answer.proof.path, answer.proof.kv_source) == ("handover", first.node.member_id)
            assert (answer.proof.transferred_tokens, answer.proof.recomputed_tokens) == (
                num_moved,
                num_known - num_moved,
            )
            assert (answer.proof.transport, answer.proof.verified, answer.proof.attempts) == ("inproc", True, 0)
            assert second.model.num_computed_tokens == num_known - num_moved + len(answer.ids) - 1
            assert await draining == 0
            first.model.gate.open()
            await running.settled()

    async def test_is_counted_where_it_left_and_where_it_came(self) -> None:
        async with two_decoders() as (running, first, second):
            call = begin(running, prompt(30))
            draining = await handed_over(running, call, first, 4)
            await going_on(running, call, source_of(first, call.answer), second).finish()
            await running.settled([second])
            assert (first.counted("sequences_handed_over"), second.counted("sequences_handed_over")) == (1, 0)
            assert second.counted("kv_fetches", outcome="arrived") == 1
            assert second.counted("requests", path="handover") == 1
            assert second.counted("prefill_attempts", outcome="arrived") == 0
            assert await draining == 0

    async def test_may_be_handed_over_again(self) -> None:
        async with two_decoders() as (running, first, second):
            third = await running.add_decode()
            calls = [begin(running, prompt(30), SEEDED)]
            drains = [await handed_over(running, calls[0], first, 3)]
            second.model.gate.close()
            calls.append(going_on(running, calls[0], source_of(first, calls[0].answer), second))
            second.model.gate.allow(3)
            await calls[1].read_tokens(2)
            drains.append(drain(running, second))
            await let_go(second)
            await calls[1].read_until("handed_over")
            answer = await going_on(running, calls[1], source_of(second, calls[1].answer), third).finish()
            assert [*calls[0].answer.tokens, *calls[1].answer.tokens, *answer.tokens] == expected(prompt(30), SEEDED)
            assert (answer.proof.path, answer.proof.kv_source) == ("handover", second.node.member_id)
            assert [await each for each in drains] == [0, 0]

    async def test_waits_for_its_prompt_that_a_peer_still_writes(self) -> None:
        async with two_decoders() as (running, first, second):
            running.prefill.model.gate.close()
            call = begin(running, prompt(30))
            await until(lambda: running.prefill.model.gate.num_waiting)
            draining = drain(running, first)
            await until(lambda: first.node.is_draining)
            first.model.gate.close()
            running.prefill.model.gate.open()
            await call.read_until("tokens")
            await let_go(first)
            await call.read_until("handed_over")
            answer = await going_on(running, call, source_of(first, call.answer), second).finish()
            assert call.answer.tokens + answer.tokens == expected(prompt(30))
            assert await draining == 0
            await running.settled()

    async def test_that_has_no_block_yet_is_simply_started_anew(self) -> None:
        async with two_decoders(prefills=0) as (running, first, second):
            first.model.gate.close()
            call = begin(running, prompt(30))
            await until(lambda: first.model.gate.num_waiting)
            late = begin(running, prompt(3, seed=5))
            await commands_wait(first, 1)  # to reserve
            first.model.gate.allow(1)
            await late.read_until("accepted")
            engine = first.node.engine
            await until(lambda: engine._inbox.qsize() or engine.load.num_waiting)  # to compute the prompt here
            gate = first.model.gate
            await until(lambda: gate.holds_a_step)
            num_commands = engine._inbox.qsize()
            draining = drain(running, first)
            await commands_wait(first, num_commands + 1)
            gate.allow(1)
            for each in (call, late):
                await each.read_until("handed_over")
            assert late.answer.handed_over is not None
            assert (late.answer.handed_over.kept_as, late.answer.handed_over.blocks) == ("", 0)
            answer = await going_on(running, call, source_of(first, call.answer), second).finish()
            assert call.answer.tokens + answer.tokens == expected(prompt(30))
            assert await draining == 0
            first.model.gate.open()
            await running.settled()

    async def test_ends_where_it_is_if_nobody_could_go_on_with_it(self) -> None:
        async with two_decoders() as (running, first, _):
            running.max_room = 0
            first.model.gate.close()
            call = begin(running, prompt(30))
            await call.read_tokens(1)
            draining = drain(running, first)
            await until(lambda: first.node.is_draining)
            first.model.gate.open()
            assert (await call.finish()).tokens == expected(prompt(30))
            assert await draining == 0
            assert first.counted("sequences_handed_over") == 0

    async def test_has_its_time_before(self) -> None:
        async with two_decoders(handover_after_s=DEADLINE_S) as (running, first, _):
            first.model.gate.close()
            call = begin(running, prompt(30))
            await call.read_tokens(1)
            draining = drain(running, first, timeout_s=2 * DEADLINE_S)
            await until(lambda: first.node.is_draining)
            first.model.gate.open()
            assert (await call.finish()).tokens == expected(prompt(30))
            assert await draining == 0

    async def test_is_handed_over_no_later_than_after_half_the_drain(self) -> None:
        async with two_decoders(handover_after_s=30.0) as (running, first, _):
            first.model.gate.close()
            call = begin(running, prompt(30))
            await call.read_tokens(1)
            first.model.gate.open()
            for waited_s, timeout_s in [(0.0, 10.0), (4.9, 10.0), (29.0, 100.0)]:
                await first.servicer.hand_over(waited_s=waited_s, timeout_s=timeout_s)
            assert (await call.finish()).handed_over is None
            first.model.gate.close()
            call = begin(running, prompt(30))
            await until(lambda: first.model.gate.num_waiting)
            leaving = asyncio.create_task(first.servicer.hand_over(waited_s=5.0, timeout_s=10.0))
            await commands_wait(first, 1)
            first.model.gate.open()
            await leaving
            await call.read_until("handed_over")


class TestKeptBlocks:
    async def test_are_leased_until_they_are_fetched(self) -> None:
        async with two_decoders() as (running, first, second):
            call = begin(running, prompt(30))
            draining = await handed_over(running, call, first, 4)
            assert call.answer.handed_over is not None
            assert (await first.ledger()).leased == call.answer.handed_over.blocks == whole(30 + 4) // BLOCK_SIZE
            await going_on(running, call, source_of(first, call.answer), second).finish()
            assert await draining == 0
            assert (await first.ledger()).leased == 0

    async def test_that_nobody_fetches_are_given_up_and_the_drain_ends(self) -> None:
        async with two_decoders(handover_keep_s=0.05) as (running, first, _):
            call = begin(running, prompt(30))
            draining = await handed_over(running, call, first, 4)
            assert await draining == 0
            first.model.gate.open()
            await running.settled()

    async def test_of_a_caller_who_left_are_given_back(self) -> None:
        async with two_decoders(handover_keep_s=0.05) as (running, first, _):
            call = begin(running, prompt(30))
            first.model.gate.close()
            await call.read_tokens(1)
            draining = drain(running, first)
            await until(lambda: first.node.is_draining)
            call.cancel()
            first.model.gate.open()
            assert await draining == 0
            await running.settled()

    async def test_the_worker_that_keeps_them_takes_nothing_new(self) -> None:
        async with two_decoders() as (running, first, second):
            call = begin(running, prompt(30))
            draining = await handed_over(running, call, first, 2)
            with pytest.raises(Draining):
                await begin(running, prompt(9), worker=first).finish()
            await going_on(running, call, source_of(first, call.answer), second).finish()
            assert await draining == 0


class TestAFetchThatFails:
    @pytest.mark.parametrize("fault", [Action.CORRUPT, Action.DROP, Action.STALL])
    async def test_is_an_ordinary_replay(self, fault: Action) -> None:
        async with two_decoders(prefill_step_timeout_s=1.0, handover_keep_s=2.0) as (running, first, second):
            call = begin(running, prompt(30), SEEDED)
            draining = await handed_over(running, call, first, 4)
            first.faults.plan = scripted(pushes={0: fault})
            answer = await going_on(running, call, source_of(first, call.answer), second).finish()
            assert call.answer.tokens + answer.tokens == expected(prompt(30), SEEDED)
            assert (answer.proof.path, answer.proof.kv_source) == ("pd", "")
            assert second.counted("kv_fetches", outcome="unknown") == 1
            is_corrupt = fault is Action.CORRUPT
            assert second.counted("integrity_failures", kind=PayloadDigestMismatch.code) == is_corrupt
            first.faults.resume()
            first.model.gate.open()
            assert await draining == 0
            await running.settled()

    async def test_without_prefill_workers_the_prompt_is_computed_here(self) -> None:
        async with two_decoders() as (running, first, second):
            call = begin(running, prompt(30))
            await handed_over(running, call, first, 4)
            await first.stop()
            again = going_on(running, call, source_of(first, call.answer), second, candidates=())
            answer = await again.finish()
            assert call.answer.tokens + answer.tokens == expected(prompt(30))
            assert answer.proof.path == "fallback"
            await running.settled([second, running.prefill])

    async def test_at_another_incarnation_posts_nothing(self) -> None:
        async with two_decoders(handover_keep_s=0.05) as (running, first, second):
            call = begin(running, prompt(30))
            draining = await handed_over(running, call, first, 4)
            source = source_of(first, call.answer)
            source.member_id = "decode-earlier"
            answer = await going_on(running, call, source, second).finish()
            assert call.answer.tokens + answer.tokens == expected(prompt(30))
            assert second.counted("kv_fetches", outcome="nothing_posted") == 1
            assert second.counted("quarantined_blocks") == 0
            assert await draining == 0


class TestPrefixElsewhere:
    async def test_what_another_decode_worker_cached_is_fetched_and_the_rest_prefilled(self) -> None:
        async with cluster() as running:
            second = await running.add_decode()
            await generate(running, prompt(40), replace(GREEDY, max_tokens=2))
            longer = [*prompt(40), *prompt(30, seed=3)]
            answer = await begin(running, longer, worker=second, kv_source=running.decode.source).finish()
            assert answer.tokens == expected(longer)
            assert (answer.proof.path, answer.proof.kv_source) == ("pd", running.decode.node.member_id)
            assert (answer.proof.transferred_tokens, answer.proof.prefill_cached_tokens) == (70, 40)
            assert answer.proof.fetched_tokens == 40
            await running.settled()
            sent = running.prefill.counted("transferred_blocks", transport="inproc", direction="sent")
            assert sent == 10 + 18 - 10  # the second time only what the decode worker did not have

    async def test_a_prefill_worker_serves_its_cache_too(self) -> None:
        async with cluster() as running:
            second = await running.add_decode()
            await generate(running, prompt(40), replace(GREEDY, max_tokens=2))
            before = running.prefill.model.num_computed_tokens
            answer = await begin(running, prompt(40), worker=second, kv_source=running.prefill.source).finish()
            assert answer.tokens == expected(prompt(40))
            assert (answer.proof.path, answer.proof.reason) == ("local", "prefix fetched")
            assert (answer.proof.transferred_tokens, answer.proof.fetched_tokens) == (36, 36)
            assert running.prefill.model.num_computed_tokens == before
            await running.settled()

    async def test_who_has_nothing_says_so_and_costs_no_block(self) -> None:
        async with cluster(shape=Shape(num_blocks=32)) as running:
            second = await running.add_decode(Shape(num_blocks=32))
            answer = await begin(running, prompt(40), worker=second, kv_source=running.decode.source).finish()
            assert answer.tokens == expected(prompt(40))
            assert (answer.proof.path, answer.proof.kv_source) == ("pd", "")
            assert second.counted("kv_fetches", outcome="nothing_posted") == 1
            await running.settled()

    async def test_another_project_gets_nothing(self) -> None:
        async with cluster() as running:
            second = await running.add_decode()
            await generate(running, prompt(40), project="one")
            answer = await begin(
                running, prompt(40), worker=second, kv_source=running.decode.source, project="other"
            ).finish()
            assert (answer.proof.path, answer.proof.kv_source) == ("pd", "")
            await running.settled()
