"""Leaving without an error for anybody: who is being answered, and whether new requests are taken."""

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

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count one request for the length of the block."""
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    async def leave(self, delay_s: float) -> None:
        """Say that we leave, take requests for ``delay_s`` more, then refuse new ones."""
        self.is_leaving = True
        await self._clock.sleep(delay_s)
        self.is_closed = True
