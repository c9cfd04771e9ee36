"""Threads for rendering and encoding, so that a long text does not stop the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from services.errors import DeadlineExceeded

Result = TypeVar("Result")


class TextThreads:
    """Runs CPU work on ``executor`` with a deadline; the executor bounds how much runs at once."""

    def __init__(self, executor: Executor, timeout_s: float) -> None:
        self._executor = executor
        self.timeout_s = timeout_s

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns.

        Raises:
            DeadlineExceeded: it took too long; work that has begun goes on in its thread and is ignored, so it has
                to end by itself: rendering has its own deadline, encoding a bounded text.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except TimeoutError as error:
            raise DeadlineExceeded("The prompt could not be rendered and encoded in time.") from error
