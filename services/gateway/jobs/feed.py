"""Hands new events of the jobs that this gateway writes to the clients that it streams them to, without Redis."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.gateway.jobs.events import LogEntry
from services.gateway.store.kinds import Ref

MAX_KEPT = 256
"""Entries kept for one reader; one that lags further behind reads the log."""

JobKey = tuple[str, Ref]
"""Project and job."""


class Subscription:
    """What one reader has not taken yet."""

    def __init__(self) -> None:
        self._entries: list[LogEntry] = []
        self._has_more = asyncio.Event()

    def put(self, entries: Sequence[LogEntry]) -> None:
        """Add entries; the oldest are dropped if the reader takes none."""
        self._entries = [*self._entries, *entries][-MAX_KEPT:]
        self._has_more.set()

    def take(self, after: int) -> list[LogEntry]:
        """Return the entries that follow number ``after`` without a gap; none if the log must be read."""
        entries, self._entries = [entry for entry in self._entries if entry.number > after], []
        self._has_more.clear()
        return entries if entries and entries[0].number == after + 1 else []

    async def wait(self, timeout_s: float) -> None:
        """Return when something was put, at the latest after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_more.wait()
        except TimeoutError:
            return


class Feed:
    """The readers of this gateway, by job."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[JobKey, set[Subscription]] = defaultdict(set)

    def publish(self, key: JobKey, entries: Sequence[LogEntry]) -> None:
        """Tell all readers of a job what was written to its log."""
        for subscription in self._subscriptions.get(key, ()):
            subscription.put(entries)

    @contextmanager
    def subscribed(self, key: JobKey) -> Iterator[Subscription]:
        """Listen to a job for the length of the block."""
        subscription = Subscription()
        self._subscriptions[key].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[key].discard(subscription)
            if not self._subscriptions[key]:
                del self._subscriptions[key]
