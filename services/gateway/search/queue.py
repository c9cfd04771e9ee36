"""Looks for files that wait to be indexed, on any gateway."""

import asyncio
from collections import Counter
from random import Random

from services.cluster.background import Outage
from services.errors import StateUnavailable
from services.gateway.files.storage import FileStorage
from services.gateway.search.ingestion import Ingestion
from services.gateway.search.operations import QUEUE
from services.gateway.store.kinds import STORED_FILE
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


class IngestionQueue:
    """Indexes one file of each project after the other, in as many tasks as call it.

    Of several tasks one is left to other projects: however large the files of one are, they hold up only its own.
    """

    def __init__(self, storage: FileStorage, ingestion: Ingestion, random: Random, *, num_tasks: int) -> None:
        self._storage = storage
        self._ingestion = ingestion
        self._random = random
        self._max_of_project = max(1, num_tasks - 1)
        self._in_hand: Counter[str] = Counter()
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
        """Index a file of each project in which one waits now; return how many were tried.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        projects = await self._storage.projects()
        self._random.shuffle(projects)
        num_tried = 0
        for project in projects:
            if self._in_hand[project] >= self._max_of_project:
                continue
            self._in_hand[project] += 1
            try:
                num_tried += await self._take(project)
            finally:
                self._in_hand[project] -= 1
        return num_tried

    async def _take(self, project: str) -> int:
        """Index the file of a project that waits longest; return how many were tried."""
        waiting = await self._storage.of(project).due(QUEUE, self._ingestion.now_ms, 1)
        for _, object_id in waiting:
            await self._ingestion.run(project, STORED_FILE.ref(object_id))
        return len(waiting)

    async def _round(self) -> int:
        try:
            num_tried = await self.sweep()
        except StateUnavailable as error:
            self._outage.failed(error)
            return 0
        self._outage.succeeded()
        return num_tried
