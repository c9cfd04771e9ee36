"""Reads the events of a job for a client: what the log has, then what comes, each once, wherever the job is written."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from services.errors import InvalidRequest, ObjectNotFound, StateUnavailable
from services.gateway.jobs.events import PAUSES, LogEntry
from services.gateway.jobs.feed import Feed, JobKey, Subscription
from services.gateway.jobs.storage import MAX_READ, JobStorage, ProjectJobs
from services.gateway.store.kinds import Ref

_PAUSE_S = 0.5
_MAX_ATTEMPTS = 60
"""Attempts to read the log of a stream that has begun while Redis is away."""


class EventReader:
    """Reads logs."""

    def __init__(self, storage: JobStorage, feed: Feed, is_here: Callable[[JobKey], bool], *, wait_s: float) -> None:
        """``is_here`` says whether this gateway writes a job; ``wait_s`` bounds each wait for a new event."""
        self._storage = storage
        self._feed = feed
        self._is_here = is_here
        self._wait_s = wait_s

    async def events(
        self, key: JobKey, after: int, *, stops_at_pause: bool, first_number: int = 1
    ) -> AsyncGenerator[LogEntry, None]:
        """Yield the events after number ``after``, until nothing more comes unless a client does something.

        With ``stops_at_pause`` the first event that pauses the job is the last; without, it is passed if others follow.
        ``first_number`` is what clients call the first event.

        Raises:
            InvalidRequest: the log does not reach ``after``.
            ObjectNotFound: there is no such job, or its events are not kept any more.
            StateUnavailable: Redis cannot be reached, and stays away.
        """
        jobs, job = self._storage.of(key[0]), key[1]
        with self._feed.subscribed(key) as subscription:
            entries = await jobs.read(job, after)
            if not entries:
                await self._check_position(jobs, key, after, first_number)
            while True:
                for entry in entries:
                    yield entry
                    after = entry.number
                    if stops_at_pause and entry.pauses_job:
                        return
                was_paused = bool(entries) and entries[-1].pauses_job
                if (not entries or was_paused) and await self._is_over(jobs, key, after):
                    return
                is_behind = len(entries) == MAX_READ  # what follows is in the log already
                entries = await self._next(jobs, key, after, subscription, wait_s=0.0 if is_behind else self._wait_s)

    async def _next(
        self, jobs: ProjectJobs, key: JobKey, after: int, subscription: Subscription, *, wait_s: float
    ) -> Sequence[LogEntry]:
        """Return entries after number ``after``; none if there were none for ``wait_s``."""
        if self._is_here(key):
            await subscription.wait(wait_s)
        if entries := subscription.take(after):
            return entries
        for _ in range(_MAX_ATTEMPTS):
            try:
                return await jobs.read(key[1], after, wait_s=0.0 if self._is_here(key) else wait_s)
            except StateUnavailable as error:
                failure = error
                await asyncio.sleep(_PAUSE_S)
        raise failure

    async def _is_over(self, jobs: ProjectJobs, key: JobKey, after: int) -> bool:
        """Return whether the job is paused or at its end, and ``after`` is its last event."""
        record = await jobs.objects.get(key[1])
        state = await jobs.state(key[1])
        return record.body["status"] in PAUSES and state is not None and state.last_event <= after

    async def _check_position(self, jobs: ProjectJobs, key: JobKey, after: int, first_number: int) -> None:
        record = await jobs.objects.get(key[1])
        state = await jobs.state(key[1])
        if state is None:  # it came from elsewhere, without its log
            raise _not_kept(key[1])
        if after > state.last_event:
            last = state.last_event - 1 + first_number
            raise InvalidRequest(
                f"The last event of the {key[1].kind.noun} '{key[1].id}' is number {last}.",
                param="starting_after",
            )
        if after < state.last_event and record.body["status"] in PAUSES and not await jobs.read(key[1], after):
            raise _not_kept(key[1])


def _not_kept(job: Ref) -> ObjectNotFound:
    return ObjectNotFound(f"The events of the {job.kind.noun} '{job.id}' are not kept any more.")
