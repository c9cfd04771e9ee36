"""Leaving without an error for anybody: who is being answered, and whether new requests are taken."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from services.telemetry.clock import Clock


class Drain:
    """Knows the open requests of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.is_leaving = False
        """Load balancers should send nothing more; requests are still taken."""
        self.is_closed = False
        """New requests are refused."""
        self.num_open = 0
        self._has_left = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count one request for the length of the block."""
        self.num_open += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            if not self.num_open:
                self._is_idle.set()

    async def leave(self, delay_s: float) -> None:
        """Say that we leave, take requests for ``delay_s`` more, then refuse new ones."""
        self.is_leaving = True
        self._has_left.set()
        await self._clock.sleep(delay_s)
        self.is_closed = True

    async def wait_leaving(self) -> None:
        """Return once this process leaves."""
        await self._has_left.wait()

    async def wait_answered(self, timeout_s: float) -> int:
        """Wait until no request is open; return how many are when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()
        except TimeoutError:
            return self.num_open
        return 0
