"""Reads the events of a run for a client: what the log has, then what comes, each once, wherever the run is written."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from services.errors import InvalidRequest, ObjectNotFound, StateUnavailable
from services.gateway.runs.events import LogEntry
from services.gateway.runs.feed import Feed, RunKey, Subscription
from services.gateway.runs.lifecycle import PAUSES
from services.gateway.runs.storage import ProjectRuns, RunStorage

_PAUSE_S = 0.5
_MAX_ATTEMPTS = 60
"""Attempts to read the log of a stream that has begun while Redis is away."""


class EventReader:
    """Reads logs."""

    def __init__(self, storage: RunStorage, feed: Feed, is_here: Callable[[RunKey], bool], *, wait_s: float) -> None:
        """``is_here`` says whether this gateway writes a run; ``wait_s`` bounds each wait for a new event."""
        self._storage = storage
        self._feed = feed
        self._is_here = is_here
        self._wait_s = wait_s

    async def events(self, key: RunKey, after: int, *, stops_at_pause: bool) -> AsyncGenerator[LogEntry, None]:
        """Yield the events after number ``after``, until nothing more comes unless a client does something.

        With ``stops_at_pause`` the first event that pauses the run is the last; without, it is passed if others follow.

        Raises:
            InvalidRequest: the log does not reach ``after``.
            ObjectNotFound: there is no such run, or its events are not kept any more.
            StateUnavailable: Redis cannot be reached, and stays away.
        """
        runs, run = self._storage.of(key[0]), key[1]
        with self._feed.subscribed(key) as subscription:
            entries = await runs.read(run, after)
            if not entries:
                await self._check_position(runs, key, after)
            while True:
                for entry in entries:
                    yield entry
                    after = entry.number
                    if stops_at_pause and entry.pauses_run:
                        return
                was_paused = bool(entries) and entries[-1].pauses_run
                if (not entries or was_paused) and await self._is_over(runs, key, after):
                    return
                entries = await self._next(runs, key, after, subscription)

    async def _next(self, runs: ProjectRuns, key: RunKey, after: int, subscription: Subscription) -> Sequence[LogEntry]:
        """Return entries after number ``after``; none if there were none for a while."""
        if self._is_here(key):
            await subscription.wait(self._wait_s)
        if entries := subscription.take(after):
            return entries
        for _ in range(_MAX_ATTEMPTS):
            try:
                return await runs.read(key[1], after, wait_s=0.0 if self._is_here(key) else self._wait_s)
            except StateUnavailable as error:
                failure = error
                await asyncio.sleep(_PAUSE_S)
        raise failure

    async def _is_over(self, runs: ProjectRuns, key: RunKey, after: int) -> bool:
        """Return whether the run is paused or at its end, and ``after`` is its last event."""
        record = await runs.objects.get(key[1])
        state = await runs.log_state(key[1])
        return record.body["status"] in PAUSES and state is not None and state.last_event <= after

    async def _check_position(self, runs: ProjectRuns, key: RunKey, after: int) -> None:
        record = await runs.objects.get(key[1])
        state = await runs.log_state(key[1])
        if state is None:
            raise ObjectNotFound(key[1].absent_text)
        if after > state.last_event:
            raise InvalidRequest(
                f"The last event of the run '{key[1].id}' is number {state.last_event}.", param="starting_after"
            )
        if after < state.last_event and record.body["status"] in PAUSES and not await runs.read(key[1], after):
            raise ObjectNotFound(f"The events of the run '{key[1].id}' are not kept any more.")
