import asyncio
import logging

import pytest

from services.cluster.background import Background
from services.telemetry.clock import ManualClock
from services.telemetry.logs import get_logger


async def test_a_cancellation_that_a_library_swallowed_is_repeated() -> None:
    swallowed = 0

    async def loop() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed += 1

    task = Background("loop", get_logger(__name__), ManualClock())
    task.start(loop)
    for _ in range(2):
        await asyncio.sleep(0)
    await task.close()
    assert swallowed == 1
    assert not task.is_running


class RecordingClock(ManualClock):
    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        await super().sleep(delay_s)


async def test_what_fails_is_logged_and_begun_again_after_a_pause_that_grows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, num_runs, went_well = RecordingClock(), 0, asyncio.Event()

    async def fail_eight_times() -> None:
        nonlocal num_runs
        num_runs += 1
        if num_runs == 8:
            clock.advance(31.0)
        if num_runs < 9:
            raise ValueError("a defect")
        went_well.set()
        await asyncio.Event().wait()

    task = Background("loop", get_logger(__name__), clock)
    task.start(fail_eight_times)
    async with asyncio.timeout(30):
        await went_well.wait()
    assert clock.slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 1.0]
    failures = [record for record in caplog.records if record.message == "background.failed"]
    assert [record.levelno for record in failures] == [logging.ERROR] * 8
    assert task.is_running
    await task.close()
    assert not task.is_running


async def test_what_comes_to_its_end_is_not_begun_again() -> None:
    task, ended = Background("once", get_logger(__name__), ManualClock()), asyncio.Event()

    async def once() -> None:
        assert not ended.is_set()
        ended.set()

    task.start(once)
    async with asyncio.timeout(30):
        while task.is_running:
            await asyncio.sleep(0)
    assert ended.is_set()
