"""After a cancel, whatever it meets, the engine runs at most one more step that contains the request."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

import pytest

from services.engine.schedule import Schedule
from services.gateway.answering.generation import Generation
from services.gateway.answering.sequence import NewTokens
from tests.chaos.gateway import gateway
from tests.inprocess.client import SEEDED, begin, expected_ids, prompt
from tests.inprocess.cluster import Cluster, Worker, cluster, until

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


def generation(running: Cluster) -> Generation:
    return gateway(running).generation(prompt(30), LONG_ANSWER, request_id=REQUEST_ID)


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
