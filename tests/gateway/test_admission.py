import asyncio

import pytest

from services.errors import Overloaded
from services.gateway.admission import AdmissionLimits, FifoAdmission
from services.telemetry.clock import ManualClock


def admission(
    *, max_requests: int = 2, max_tokens: int = 100, max_waiting: int = 2, max_wait_s: float = 60.0
) -> FifoAdmission:
    return FifoAdmission(AdmissionLimits(max_requests, max_tokens, max_waiting, max_wait_s), ManualClock())


class Visitor:
    """Comes in when admitted and stays until told to go."""

    def __init__(self, door: FifoAdmission, num_tokens: int = 10) -> None:
        self.is_in = False
        self._door = door
        self._num_tokens = num_tokens
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._door.admitted("default", self._num_tokens):
            self.is_in = True
            await self._leave.wait()
        self.is_in = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_wait_in_order_when_all_turns_are_taken() -> None:
    door = admission()
    visitors = [Visitor(door) for _ in range(4)]
    await settle()
    assert [each.is_in for each in visitors] == [True, True, False, False]

    await visitors[1].leave()
    assert [each.is_in for each in visitors] == [True, False, True, False]

    for visitor in (visitors[0], visitors[2], visitors[3]):
        await visitor.leave()
    assert (door.num_running, door.num_waiting) == (0, 0)


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    door = admission(max_waiting=1)
    visitors = [Visitor(door) for _ in range(3)]
    await settle()

    with pytest.raises(Overloaded) as caught:
        async with door.admitted("default", 1):
            pass

    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60
    for visitor in visitors:
        await visitor.leave()


async def test_waiting_ends_at_its_deadline() -> None:
    door = admission(max_requests=1, max_wait_s=0.01)
    visitor = Visitor(door)
    await settle()

    with pytest.raises(Overloaded):
        async with door.admitted("default", 1):
            pass

    assert door.num_waiting == 0
    await visitor.leave()
    assert door.num_running == 0


async def test_tokens_are_bounded_and_nobody_overtakes() -> None:
    door = admission(max_requests=10, max_waiting=10)
    large, waiting, small = Visitor(door, 80), Visitor(door, 50), Visitor(door, 1)
    await settle()
    assert (large.is_in, waiting.is_in, small.is_in) == (True, False, False)

    await large.leave()

    assert (waiting.is_in, small.is_in) == (True, True)
    await waiting.leave()
    await small.leave()


async def test_a_request_larger_than_the_limit_runs_alone() -> None:
    door = admission()
    large, small = Visitor(door, 10_000), Visitor(door, 1)
    await settle()
    assert (large.is_in, small.is_in) == (True, False)

    await large.leave()
    await small.leave()

    assert door.num_running == 0


async def test_who_gives_up_leaves_no_gap() -> None:
    door = admission(max_requests=1)
    inside, impatient, next_one = Visitor(door), Visitor(door), Visitor(door)
    await settle()
    impatient.task.cancel()
    await settle()

    await inside.leave()

    assert next_one.is_in
    await next_one.leave()
    assert (door.num_running, door.num_waiting) == (0, 0)


async def test_a_turn_that_comes_while_giving_up_is_passed_on() -> None:
    door = admission(max_requests=1)
    inside, unlucky, next_one = Visitor(door), Visitor(door), Visitor(door)
    await settle()
    inside._leave.set()
    await inside.task  # the turn is given, but its holder has not run yet
    unlucky.task.cancel()
    await settle()

    assert next_one.is_in
    await next_one.leave()
    assert door.num_running == 0
