"""Looks for files that wait to be indexed, on any gateway."""

import asyncio
from random import Random

from services.cluster.background import Outage
from services.errors import StateUnavailable
from services.gateway.files.storage import FileStorage
from services.gateway.search.ingestion import Ingestion
from services.gateway.search.operations import QUEUE
from services.gateway.store.kinds import STORED_FILE
from services.telemetry.logs import get_logger

MAX_TAKEN = 8
"""Files of one project that are tried in one round, so that gateways and projects share."""

_log = get_logger(__name__)


class IngestionQueue:
    """Indexes one file after the other."""

    def __init__(self, storage: FileStorage, ingestion: Ingestion, random: Random) -> None:
        self._storage = storage
        self._ingestion = ingestion
        self._random = random
        self._wake = asyncio.Event()
        self._outage = Outage("ingestion", _log)

    def wake(self) -> None:
        """Say that there is something to do."""
        self._wake.set()

    async def follow(self, interval_s: float) -> None:
        """Look whenever there is something to do here, and about every ``interval_s``, until cancelled."""
        while True:
            self._wake.clear()
            if not await self._round():
                try:
                    async with asyncio.timeout(interval_s * self._random.uniform(0.5, 1.0)):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def sweep(self) -> int:
        """Index what waits now, up to some files of each project; return how many were tried.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        projects = await self._storage.projects()
        self._random.shuffle(projects)
        num_tried = 0
        for project in projects:
            waiting = await self._storage.of(project).due(QUEUE, self._ingestion.now_ms, MAX_TAKEN)
            for _, object_id in waiting:
                await self._ingestion.run(project, STORED_FILE.ref(object_id))
            num_tried += len(waiting)
        return num_tried

    async def _round(self) -> int:
        try:
            num_tried = await self.sweep()
        except StateUnavailable as error:
            self._outage.failed(error)
            return 0
        self._outage.succeeded()
        return num_tried
