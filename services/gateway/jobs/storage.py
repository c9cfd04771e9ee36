"""Reads what jobs have in Redis beside their objects: which are due, and their logs of events."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.gateway.jobs.events import LogEntry
from services.gateway.jobs.operations import QUEUE
from services.gateway.redis_state import RedisState
from services.gateway.store.keys import attached_key, project_prefix, record_key
from services.gateway.store.kinds import Kind, Ref
from services.gateway.store.object_store import Objects, ObjectStore
from services.gateway.store.passed import Passed

MAX_READ = 1000
"""Entries of a log that are read at once."""
MAX_LOOKED = 256
"""Jobs of one project that are looked at for those that this gateway knows."""


@dataclass(frozen=True)
class JobState:
    """What the store knows of a job beside its object."""

    fence: int
    """Of whoever took it last."""
    last_event: int
    """Where its log ends."""
    expires_ms: int
    is_open: bool
    """Whether the job has not ended."""


class JobStorage:
    """What all projects have in common; all methods raise StateUnavailable when Redis cannot be reached."""

    def __init__(self, objects: ObjectStore, kinds: Iterable[Kind]) -> None:
        self._objects = objects
        self._kinds = {kind.name: kind for kind in kinds}
        self._passed = Passed()

    def of(self, project: str) -> "ProjectJobs":
        """Return the jobs of one project."""
        return ProjectJobs(self._objects.state, project, self._objects.of(project))

    def ref(self, key: str) -> Ref | None:
        """Return the job that a key names, as in ``run:run_abc``; None for a kind that only other gateways know."""
        name, _, job_id = key.partition(":")
        kind = self._kinds.get(name)
        return None if kind is None else kind.ref(job_id)

    async def due(self, now_ms: int, limit: int) -> list[tuple[str, Ref]]:
        """Return projects and jobs that any gateway may take; of each project the longest due, at most ``limit``.

        Jobs of kinds that only other gateways know are passed over, ``MAX_LOOKED`` at a time.
        """
        projects = await self._objects.projects()
        async with self._objects.state.reaching() as client:
            pipeline = client.pipeline(transaction=False)
            for project in projects:
                start = self._passed.of(project)
                pipeline.zrangebyscore(_queue_key(project), "-inf", now_ms, start=start, num=MAX_LOOKED)
            found = await pipeline.execute() if projects else []
        return [
            (project, job)
            for project, members in zip(projects, found, strict=True)
            for job in self._known(project, [member.decode() for member in members], limit)
        ]

    def _known(self, project: str, keys: Sequence[str], limit: int) -> list[Ref]:
        """Return the first jobs that this gateway knows; the next look begins behind the others."""
        jobs, num_looked = list[Ref](), 0
        for key in keys:
            if len(jobs) == limit:
                break
            num_looked += 1
            if (job := self.ref(key)) is not None:
                jobs.append(job)
        is_at_end = num_looked == len(keys) < MAX_LOOKED
        self._passed.looked(project, num_left=num_looked - len(jobs), is_at_end=is_at_end)
        return jobs

    async def register(self, project: str) -> None:
        """Let sweepers know of a project; before its first job, so that none is overlooked."""
        await self._objects.register(project)


class ProjectJobs:
    """The jobs of one project."""

    def __init__(self, state: RedisState, project: str, objects: Objects) -> None:
        self._state = state
        self.project = project
        self.objects = objects

    async def state(self, job: Ref) -> JobState | None:
        """Return what the store knows of a job; None if there is no such job."""
        async with self._state.reaching() as client:
            pipeline = client.pipeline(transaction=False)
            pipeline.hmget(record_key(self.project, job), ["fence", "last_event", "expires_ms"])
            pipeline.zscore(_queue_key(self.project), job.key)
            (fence, last_event, expires_ms), due = await pipeline.execute()
        return None if last_event is None else JobState(int(fence), int(last_event), int(expires_ms), due is not None)

    async def read(self, job: Ref, after: int, *, wait_s: float = 0.0) -> Sequence[LogEntry]:
        """Return entries after number ``after``, at most ``MAX_READ``; wait for the first if there is none yet."""
        key = attached_key(self.project, job, "events")
        options = {"block": max(1, round(1e3 * wait_s))} if wait_s else {}
        async with self._state.reaching(waits=bool(wait_s)) as client:
            found: Any = await client.xread({key: f"{after}-0"}, count=MAX_READ, **options)
        entries = found[0][1] if found else ()
        return [_entry(entry_id, fields) for entry_id, fields in entries]


def _queue_key(project: str) -> str:
    return project_prefix(project) + QUEUE


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> LogEntry:
    progress = fields.get(b"progress")
    return LogEntry(
        int(entry_id.partition(b"-")[0]),
        fields[b"event"].decode(),
        fields[b"data"],
        tuple(orjson.loads(progress)) if progress is not None else (),
        b"pauses_job" in fields,
    )
