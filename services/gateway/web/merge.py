"""Several streams as one, read in the background."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
MAX_BUFFERED_ITEMS = 256


class Pump(Generic[Item]):
    """Reads sources into one bounded buffer, so that waiting for them can be interrupted; ``async with``."""

    def __init__(self, sources: Sequence[AsyncGenerator[Item, None]]) -> None:
        self._sources = sources
        self._tasks: list[asyncio.Task[None]] = []
        self._buffer: deque[Item] = deque()
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._read(source)) for source in self._sources]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self) -> list[Item] | None:
        """Return all items that are there, at least one; None after the last. A cancelled call loses nothing.

        Raises:
            Exception: what a source raised, after the items before it.
        """
        while not self._buffer:
            self._changed.clear()
            ended = [task for task in self._tasks if task.done()]
            for task in ended:
                task.result()
            if len(ended) == len(self._tasks):
                return None
            await self._changed.wait()
        items = list(self._buffer)
        self._buffer.clear()
        self._has_room.set()
        return items

    async def _read(self, source: AsyncGenerator[Item, None]) -> None:
        async with aclosing(source) as items:
            async for item in items:
                while len(self._buffer) >= MAX_BUFFERED_ITEMS:
                    self._has_room.clear()
                    await self._has_room.wait()
                self._buffer.append(item)
                self._changed.set()


def merged(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Return the items of all sources as they come, each source in its order; closing it closes them all.

    Raises:
        Exception: the first that a source raises.
    """
    return sources[0] if len(sources) == 1 else _pumped(sources)


async def _pumped(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    async with Pump(sources) as pump:
        while (items := await pump.next()) is not None:
            for item in items:
                yield item
