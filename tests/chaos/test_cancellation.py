"""After a cancel, whatever it meets, the engine runs at most one more step that contains the request."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random

import pytest

from services.cluster.registry import Member, MemberLoad, Role
from services.engine.schedule import Schedule
from services.gateway.decode_client import GrpcDecodeClient
from services.gateway.generation import Generation, GenerationServices
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.router import Router
from services.gateway.routing.suspects import Suspects
from services.gateway.sequence import NewTokens, SequenceRequest
from services.rpc.channel import PROTOCOL_VERSION
from services.telemetry.clock import SystemClock
from tests.chaos.caller import LIMITS
from tests.inprocess.client import SEEDED, begin, expected_ids, prompt
from tests.inprocess.cluster import Cluster, Worker, cluster, until
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S

REQUEST_ID = "given-up"
LONG_ANSWER = replace(SEEDED, max_tokens=50)
CHUNKS = range(1, 4)


@dataclass
class Steps:
    """The steps of one engine that contain the request: chosen ones, and how many had begun at the cancel."""

    num_chosen: int = 0
    num_at_cancel: int = 0

    @property
    def num_after_cancel(self) -> int:
        return self.num_chosen - self.num_at_cancel


def watch(worker: Worker) -> Steps:
    """Count from now on."""
    steps, scheduler = Steps(), worker.node.engine._engine.scheduler
    choose = scheduler.next

    def counting() -> Schedule:
        schedule = choose()
        steps.num_chosen += any(request.request_id.startswith(REQUEST_ID) for request in schedule.requests)
        return schedule

    scheduler.next = counting  # type: ignore[method-assign]
    return steps


def member(worker: Worker, role: Role) -> Member:
    node = worker.node
    return Member(
        member_id=node.member_id,
        role=role,
        address=worker.address,
        model_name="hash",
        card_digest=node.card.digest,
        fingerprint=node.layout.fingerprint,
        transport="inproc",
        protocol_version=PROTOCOL_VERSION,
        load=MemberLoad(),
    )


@dataclass
class Members:
    listed: Sequence[Member]

    def members(self) -> Sequence[Member]:
        return self.listed


def generation(running: Cluster) -> Generation:
    """Return the request as a gateway runs it."""
    clock = SystemClock()
    members = Members([member(running.decode, Role.DECODE), member(running.prefill, Role.PREFILL)])
    router = Router(members, Suspects(clock, 5.0), Random(0))
    services = GenerationServices(router, GrpcDecodeClient(running.channels), clock, LIMITS)
    request = SequenceRequest(
        request_id=REQUEST_ID,
        project="",
        requirements=Requirements(running.decode.node.layout.fingerprint, PROTOCOL_VERSION),
        block_size=BLOCK_SIZE,
        prompt_token_ids=tuple(prompt(30)),
        sampling=LONG_ANSWER,
        deadline_s=clock.now() + DEADLINE_S,
        timings_ms={},
    )
    return Generation(request, services)


async def one_step(worker: Worker) -> None:
    num_steps = worker.node.engine.num_steps
    worker.model.gate.allow(1)
    await until(lambda: worker.node.engine.num_steps > num_steps)


async def give_up(running: Cluster, worker: Worker, is_at: Callable[[list[int]], bool]) -> Steps:
    """Cancel at the gateway while ``worker`` is in a step with the request; return what its engine did since."""
    steps, token_ids, gate = watch(worker), list[int](), worker.model.gate
    gate.close()

    async def read() -> None:
        async with aclosing(generation(running).events()) as events:
            async for event in events:
                if isinstance(event, NewTokens):
                    token_ids.extend(token.token_id for token in event.tokens)

    reading = asyncio.create_task(read())
    while not (steps.num_chosen and gate.num_waiting and is_at(token_ids)):
        await until(lambda: gate.num_waiting)
        if not (steps.num_chosen and is_at(token_ids)):
            await one_step(worker)
    steps.num_at_cancel = steps.num_chosen - 1  # the one at the gate is the one more that may run
    reading.cancel()
    await asyncio.wait([reading])
    await until(lambda: not any(name.startswith(REQUEST_ID) for name in worker.node.engine._streams))
    gate.open()
    return steps


@pytest.mark.parametrize("num_tokens", range(1, 5))
async def test_while_it_generates(num_tokens: int) -> None:
    async with cluster() as running:
        neighbour = begin(running, prompt(9, seed=5), LONG_ANSWER)
        await neighbour.read_tokens(1)
        steps = await give_up(running, running.decode, lambda token_ids: len(token_ids) >= num_tokens)
        assert (await neighbour.finish()).ids == expected_ids(prompt(9, seed=5), LONG_ANSWER)
        assert steps.num_after_cancel <= 1
        await running.settled()


@pytest.mark.parametrize("num_chunks", CHUNKS)
async def test_while_it_is_prefilled(num_chunks: int) -> None:
    async with cluster() as running:
        computed = 8 * num_chunks
        steps = await give_up(running, running.prefill, lambda _: running.prefill.model.num_computed_tokens >= computed)
        neighbour = await begin(running, prompt(30, seed=6), LONG_ANSWER).finish()
        assert neighbour.ids == expected_ids(prompt(30, seed=6), LONG_ANSWER)
        assert steps.num_after_cancel <= 1
        await running.settled()
        assert running.decode.model.num_computed_tokens == LONG_ANSWER.max_tokens - 1
