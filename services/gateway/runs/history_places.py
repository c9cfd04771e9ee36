"""How many histories a gateway has in memory: each is there as a whole from its reading until its prompt is made.

One that is compacted is there until its summary is written, so these have places of their own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.errors import Overloaded

MAX_HISTORIES = 16
"""A history has a few MB of text, and some times as much as objects."""


class HistoryPlaces:
    """Places for histories; who gets none in time is told that the gateway is overloaded."""

    def __init__(self, num_places: int, timeout_s: float) -> None:
        self._places = asyncio.Semaphore(num_places)
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Have a place for the length of the block.

        Raises:
            Overloaded: none became free within ``timeout_s``.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError as error:
            text = f"The gateway read other conversations for {self._timeout_s:g} s. Try again in a few seconds."
            raise Overloaded(text) from error
        try:
            yield
        finally:
            self._places.release()
