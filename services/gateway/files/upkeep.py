"""Ends objects whose time is over and removes what deleted ones left, on any gateway; twice does no harm."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random

from services.cluster.background import Outage
from services.errors import Conflict, ObjectNotFound, StateUnavailable
from services.gateway.files.storage import FileStorage, ProjectFiles
from services.gateway.store.expiry import ForgetExpiry, RequireDue
from services.gateway.store.kinds import Kind
from services.gateway.store.passed import Passed
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

PAGE = 100
"""Objects of one project that are ended before it is another one's turn."""
MAX_SLICES = 100
"""Slices of what deleted objects left that are removed of one project in one round."""

End = Callable[[ProjectFiles, RequireDue], Awaitable[None]]
"""Ends the object that is due; raises ObjectNotFound if it is gone, Conflict if another one writes it or put it off."""

_log = get_logger(__name__)


class Upkeep:
    """Looks for objects that expired, and for what deleted ones left."""

    def __init__(self, storage: FileStorage, ends: Mapping[Kind, End], clock: Clock, random: Random) -> None:
        self._storage = storage
        self._ends = {kind.name: (kind, end) for kind, end in ends.items()}
        self._clock = clock
        self._random = random
        self._outage = Outage("upkeep", _log)
        self._passed = Passed()

    async def follow(self, interval_s: float) -> None:
        """Look about every ``interval_s`` until cancelled."""
        while True:
            try:
                await self.sweep()
            except StateUnavailable as error:
                self._outage.failed(error)
            else:
                self._outage.succeeded()
            await asyncio.sleep(interval_s * self._random.uniform(0.5, 1.0))

    async def sweep(self) -> None:
        """End what is due now, and remove what is left of deleted objects.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        now_ms = round(1e3 * self._clock.wall())
        projects = [self._storage.of(project) for project in await self._storage.projects()]
        unfinished = projects
        while unfinished:
            unfinished = [files for files in unfinished if await self._end_page(files, now_ms)]
        for files in projects:
            await self._purge(files)

    async def _end_page(self, files: ProjectFiles, now_ms: int) -> bool:
        """End some of what is due; return whether there may be more that can be ended now.

        What cannot be ended here is left, and the next page begins behind it.
        """
        due = await files.expired(now_ms, PAGE, start=self._passed.of(files.project))
        self._random.shuffle(due)  # gateways that have the same page share it
        num_gone = 0
        for kind_name, object_id in due:
            if kind_name in self._ends:  # others are of gateways of another version
                kind, end = self._ends[kind_name]
                num_gone += await self._end(files, RequireDue(kind.ref(object_id), now_ms), end)
        self._passed.looked(files.project, num_left=len(due) - num_gone, is_at_end=len(due) < PAGE)
        return len(due) == PAGE and num_gone > 0

    async def _purge(self, files: ProjectFiles) -> None:
        for _ in range(MAX_SLICES):
            if not await files.objects.purge():
                return

    async def _end(self, files: ProjectFiles, due: RequireDue, end: End) -> bool:
        """End an object; return whether it is gone."""
        try:
            await end(files, due)
            _log.event("object.expired", project=files.project, object=due.ref.id)
        except ObjectNotFound:
            await files.objects.apply([ForgetExpiry(due.ref)])
        except Conflict:  # the next round sees what became of it
            return False
        return True
