"""Time that is handed in, so that tests need no sleeps."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What code may know of time."""

    def now(self) -> float:
        """Return monotonic seconds."""

    def wall(self) -> float:
        """Return seconds since the Unix epoch."""

    async def sleep(self, delay_s: float) -> None:
        """Suspend the calling task for ``delay_s`` seconds."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since the Unix epoch."""
        return time.time()

    async def sleep(self, delay_s: float) -> None:
        """Suspend the calling task for ``delay_s`` seconds."""
        await asyncio.sleep(delay_s)


class ManualClock:
    """A clock that moves when a test says so; ``sleep`` advances it and yields once."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """Return the seconds set so far."""
        return self._now_s

    def wall(self) -> float:
        """Return the same seconds as ``now``."""
        return self._now_s

    async def sleep(self, delay_s: float) -> None:
        """Advance by ``delay_s`` and let other tasks run."""
        self.advance(delay_s)
        await asyncio.sleep(0)

    def advance(self, delay_s: float) -> None:
        """Move the clock forward."""
        self._now_s += delay_s
