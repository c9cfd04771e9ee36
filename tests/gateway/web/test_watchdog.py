"""One timer for many waits."""

import asyncio
from typing import Any

import pytest

from services.gateway.web.watchdog import Watchdog
from tests.gateway.web.conftest import LoopTime

LONG_S, SHORT_S = 60.0, 0.01


async def test_a_wait_that_takes_too_long_ends() -> None:
    watchdog = Watchdog()

    with pytest.raises(TimeoutError), watchdog.within(SHORT_S):
        await asyncio.Event().wait()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_each_wait_has_its_own_deadline_whatever_the_order(loop_time: LoopTime) -> None:
    watchdog, loop = Watchdog(), asyncio.get_running_loop()

    with watchdog.within(LONG_S):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), watchdog.within(SHORT_S):
        loop_time.pass_by(SHORT_S)
        await asyncio.Event().wait()
    with watchdog.within(SHORT_S):
        await asyncio.sleep(0)
    with watchdog.within(LONG_S):  # the timer of the wait before goes off in this one
        done = loop.create_future()
        loop.call_later(2 * SHORT_S, done.set_result, True)
        loop_time.pass_by(3 * SHORT_S)
        assert await done


async def test_a_timer_that_goes_off_between_two_waits_ends_none(loop_time: LoopTime) -> None:
    watchdog = Watchdog()

    with watchdog.within(SHORT_S):
        await asyncio.sleep(0)
    gone_off = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * SHORT_S, gone_off.set)
    loop_time.pass_by(3 * SHORT_S)
    await gone_off.wait()
    with pytest.raises(TimeoutError), watchdog.within(SHORT_S):
        loop_time.pass_by(SHORT_S)
        await asyncio.Event().wait()


async def test_a_cancellation_from_outside_is_no_timeout() -> None:
    is_waiting = asyncio.Event()

    async def wait() -> None:
        watchdog = Watchdog()
        with watchdog.within(LONG_S):
            is_waiting.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await is_waiting.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_within_a_wait_passes() -> None:
    with pytest.raises(KeyError), Watchdog().within(LONG_S):
        raise KeyError


async def test_waits_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog, loop = Watchdog(), asyncio.get_running_loop()
    call_at, timers = loop.call_at, []

    def counted(*args: Any) -> asyncio.TimerHandle:
        timers.append(call_at(*args))
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", counted)
    for _ in range(100):
        with watchdog.within(LONG_S):
            await asyncio.sleep(0)
    watchdog.close()

    (timer,) = timers
    assert timer.cancelled()
