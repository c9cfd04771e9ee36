"""Reads what runs have in Redis beside their objects: which are due, and their logs of events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.gateway.redis_state import RedisState
from services.gateway.runs.events import LogEntry
from services.gateway.store.keys import attached_key, project_prefix, record_key
from services.gateway.store.kinds import RUN, Ref
from services.gateway.store.object_store import Objects, ObjectStore

MAX_READ = 1000
"""Entries of a log that are read at once."""
_PROJECTS_KEY = "tandem:run-projects"


@dataclass(frozen=True)
class LogState:
    """Where the log of a run ends."""

    last_event: int
    is_open: bool
    """Whether the run has not ended."""


class RunStorage:
    """What all projects have in common; all methods raise StateUnavailable when Redis cannot be reached."""

    def __init__(self, objects: ObjectStore) -> None:
        self._state = objects.state
        self._objects = objects

    def of(self, project: str) -> "ProjectRuns":
        """Return the runs of one project."""
        return ProjectRuns(self._state, project, self._objects.of(project))

    async def due(self, now_ms: int, limit: int) -> list[tuple[str, Ref]]:
        """Return projects and runs that any gateway may take; of each project the longest due, at most ``limit``."""
        async with self._state.reaching() as client:
            names: Any = await client.smembers(_PROJECTS_KEY)
            projects = sorted(name.decode() for name in names)
            pipeline = client.pipeline(transaction=False)
            for project in projects:
                pipeline.zrangebyscore(_due_key(project), "-inf", now_ms, start=0, num=limit)
            found = await pipeline.execute() if projects else []
        return [
            (project, RUN.ref(member.decode().partition(":")[2]))
            for project, members in zip(projects, found, strict=True)
            for member in members
        ]

    async def register(self, project: str) -> None:
        """Let sweepers know of a project; before its first run, so that none is overlooked."""
        async with self._state.reaching() as client:
            await client.sadd(_PROJECTS_KEY, project)


class ProjectRuns:
    """The runs of one project."""

    def __init__(self, state: RedisState, project: str, objects: Objects) -> None:
        self._state = state
        self.project = project
        self.objects = objects

    async def log_state(self, run: Ref) -> LogState | None:
        """Return where a run's log ends; None if there is no such run."""
        async with self._state.reaching() as client:
            pipeline = client.pipeline(transaction=False)
            pipeline.hget(record_key(self.project, run), "last_event")
            pipeline.zscore(_due_key(self.project), run.key)
            last_event, due = await pipeline.execute()
        return None if last_event is None else LogState(int(last_event), due is not None)

    async def read(self, run: Ref, after: int, *, wait_s: float = 0.0) -> Sequence[LogEntry]:
        """Return entries after number ``after``, at most ``MAX_READ``; wait for the first if there is none yet."""
        key = attached_key(self.project, run, "events")
        options = {"block": max(1, round(1e3 * wait_s))} if wait_s else {}
        async with self._state.reaching(waits=bool(wait_s)) as client:
            found: Any = await client.xread({key: f"{after}-0"}, count=MAX_READ, **options)
        entries = found[0][1] if found else ()
        return [_entry(entry_id, fields) for entry_id, fields in entries]


def _due_key(project: str) -> str:
    return f"{project_prefix(project)}due"


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> LogEntry:
    progress = fields.get(b"progress")
    return LogEntry(
        int(entry_id.partition(b"-")[0]),
        fields[b"event"].decode(),
        fields[b"data"],
        tuple(orjson.loads(progress)) if progress is not None else (),
    )
