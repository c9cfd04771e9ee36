"""Tells gateways which prefix blocks this worker has: everything at first, then what changed.

What changes before a watcher has taken the last message is told once, as it is then: a slow watcher costs no more
memory than the names that it has not heard of.
"""

import asyncio
from collections.abc import AsyncGenerator

from services.engine.prefix_cache import CacheChanges
from services.errors import Overloaded
from services.kv.hashes import BlockHash
from services.rpc import tandem_pb2 as pb
from services.telemetry.clock import Clock

MAX_WATCHERS = 256
MAX_NAMES = 16_384
"""In one message: 256 KiB of names."""
PAUSE_S = 0.02
"""Between two messages, so that the changes of many steps travel together."""


class CacheFeed:
    """Follows what others are told of one prefix cache (``services.kv.landmarks``); lives on the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._names: set[BlockHash] = set()
        self._watchers: set[_Watcher] = set()
        self._is_closed = False

    def changed(self, changes: CacheChanges) -> None:
        """Take what came and went since the last call."""
        for name, is_here in changes.items():
            if is_here:
                self._names.add(name)
            else:
                self._names.discard(name)
        for watcher in self._watchers:
            watcher.add(changes)

    async def watch(self) -> AsyncGenerator[pb.CacheEvent, None]:
        """Yield all names, the last message of them with ``is_complete``, and then each change, until ``close``.

        Raises:
            Overloaded: too many watch already.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watch this worker's prefix cache already.", retry_after_s=30.0)
        watcher = _Watcher(self._names)
        self._watchers.add(watcher)
        try:
            while not self._is_closed:
                yield watcher.take()
                await watcher.wait()
                await self._clock.sleep(PAUSE_S)
        finally:
            self._watchers.remove(watcher)

    def close(self) -> None:
        """End all that watch."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.wake()


class _Watcher:
    """What one gateway has not heard of yet."""

    def __init__(self, names: set[BlockHash]) -> None:
        self._pending = dict.fromkeys(names, True)
        self._news = asyncio.Event()

    def add(self, changes: CacheChanges) -> None:
        self._pending.update(changes)
        self.wake()

    def wake(self) -> None:
        self._news.set()

    async def wait(self) -> None:
        """Return when there is something to tell, or the feed is closed."""
        await self._news.wait()
        self._news.clear()

    def take(self) -> pb.CacheEvent:
        """Return the oldest of what is to be told."""
        event = pb.CacheEvent()
        for name in list(self._pending)[:MAX_NAMES]:
            (event.added if self._pending.pop(name) else event.removed).append(name)
        event.is_complete = not self._pending
        if self._pending:
            self.wake()
        return event
