import asyncio

from services.cluster.background import Background
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

    task = Background("loop", get_logger(__name__))
    task.start(loop)
    await asyncio.sleep(0)
    await task.close()
    assert swallowed == 1
    assert not task.is_running
