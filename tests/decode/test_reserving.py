"""Reservations: in order of arrival, within a deadline, never more than may wait."""

import asyncio

import pytest

from services.decode.reserving import Reserving
from services.engine.blocks import Claim, Reason
from services.engine.output import Reservation
from services.engine.request import AttemptKey, NewRequest
from services.errors import ContextLengthExceeded, Overloaded
from services.kv.hashes import cache_seed
from tests.inprocess.client import GREEDY, begin, prompt
from tests.inprocess.cluster import Shape, Worker, cluster, until
from tests.inprocess.hash_model import DEADLINE_S

NOBODY = Claim(Reason.USED, "nobody")
NUM_BLOCKS = Shape().num_blocks


def spec(worker: Worker, request_id: str, num_tokens: int = 30) -> NewRequest:
    seed = cache_seed(worker.node.layout.fingerprint, "")
    return NewRequest(request_id, tuple(prompt(num_tokens)), GREEDY, seed)


async def fill(worker: Worker, num_blocks: int = NUM_BLOCKS) -> None:
    await worker.node.engine.call(lambda scheduler: scheduler._pool.take(num_blocks, NOBODY))


async def empty(worker: Worker) -> None:
    await worker.node.engine.call(lambda scheduler: scheduler._pool.release(NOBODY))


async def cancel(worker: Worker, request_id: str) -> None:
    await worker.node.engine.call(lambda scheduler: scheduler.cancel(request_id))


async def test_who_came_first_is_served_first_even_if_it_needs_more() -> None:
    async with cluster(prefills=0) as running:
        worker, order = running.decode, list[str]()
        reserving = Reserving(worker.node, timeout_s=DEADLINE_S)

        async def reserve(request_id: str, num_tokens: int) -> Reservation:
            reservation = await reserving.reserve(spec(worker, request_id, num_tokens), AttemptKey(request_id, 1))
            order.append(request_id)
            return reservation

        await fill(worker, NUM_BLOCKS - 4)
        waiting = []
        for request_id, num_tokens in (("large", 40), ("small", 4), ("middle", 20)):
            waiting.append(asyncio.create_task(reserve(request_id, num_tokens)))
            await until(lambda: reserving.num_waiting == len(waiting))
        assert not order
        await empty(worker)
        await asyncio.gather(*waiting)
        assert order == ["large", "small", "middle"]
        assert reserving.num_waiting == 0


async def test_who_waits_too_long_is_refused_and_the_next_one_gets_its_turn() -> None:
    async with cluster(prefills=0) as running:
        worker = running.decode
        await fill(worker)
        hasty = Reserving(worker.node, timeout_s=0.05)
        with pytest.raises(Overloaded):
            await hasty.reserve(spec(worker, "hasty"), AttemptKey("hasty", 1))
        assert hasty.num_waiting == 0
        await empty(worker)
        assert await hasty.reserve(spec(worker, "next"), AttemptKey("next", 1))


async def test_a_cancelled_wait_leaves_the_queue_to_others() -> None:
    async with cluster(prefills=0) as running:
        worker = running.decode
        reserving = Reserving(worker.node, timeout_s=DEADLINE_S)
        await fill(worker)
        first = asyncio.create_task(reserving.reserve(spec(worker, "first"), AttemptKey("first", 1)))
        second = asyncio.create_task(reserving.reserve(spec(worker, "second"), AttemptKey("second", 1)))
        await until(lambda: reserving.num_waiting == 2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await cancel(worker, "first")
        await empty(worker)
        assert (await second).request_id == "second"


async def test_what_can_never_fit_does_not_wait() -> None:
    async with cluster(prefills=0) as running:
        reserving = Reserving(running.decode.node, timeout_s=DEADLINE_S)
        with pytest.raises(ContextLengthExceeded):
            await reserving.reserve(spec(running.decode, "large", 300), AttemptKey("large", 1))


async def test_a_caller_without_blocks_is_told_that_the_worker_is_full() -> None:
    async with cluster(decode={"reserve_timeout_s": 0.05}) as running:
        await fill(running.decode)
        with pytest.raises(Overloaded) as refused:
            await begin(running, prompt(30)).finish()
        assert refused.value.retry_after_s is not None
        await empty(running.decode)
        await running.settled()
