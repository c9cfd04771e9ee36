"""Files and what belongs to them in Redis, for all projects."""

from dataclasses import dataclass
from typing import Any

import orjson

from services.gateway.files.blobs import Blobs
from services.gateway.redis_state import RedisState
from services.gateway.store.keys import project_prefix
from services.gateway.store.kinds import Ref
from services.gateway.store.object_store import Objects, ObjectStore
from services.gateway.store.private import known_fields

EXPIRING = "expiring"
"""The objects of a project that end at a time of their own."""


@dataclass(frozen=True)
class StoredBytes:
    """How the bytes of a file, or of a part of one, are kept; in the private bytes of the object."""

    num_bytes: int
    num_chunks: int

    def to_bytes(self) -> bytes:
        """Return the private bytes."""
        return orjson.dumps({"num_bytes": self.num_bytes, "num_chunks": self.num_chunks})

    @classmethod
    def from_bytes(cls, data: bytes | None) -> "StoredBytes":
        """Read what ``to_bytes`` wrote."""
        return cls(**known_fields(cls, orjson.loads(data))) if data else cls(0, 0)


class FileStorage:
    """What all projects have in common; all methods raise StateUnavailable when Redis cannot be reached."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def of(self, project: str) -> "ProjectFiles":
        """Return the files of one project."""
        return ProjectFiles(self._objects.state, project, self._objects.of(project))

    async def register(self, project: str) -> None:
        """Let upkeep know of a project, before it has anything that upkeep looks after."""
        await self._objects.register(project)

    async def projects(self) -> list[str]:
        """Return all projects that ever registered."""
        return await self._objects.projects()


class ProjectFiles:
    """The files of one project."""

    def __init__(self, state: RedisState, project: str, objects: Objects) -> None:
        self.state = state
        self.project = project
        self.objects = objects
        self.blobs = Blobs(state, project)

    async def expired(self, now_ms: int, limit: int, *, start: int = 0) -> list[tuple[str, str]]:
        """Return kind and id of objects whose time is over, the longest first, behind the ``start`` longest."""
        return await self.due(EXPIRING, now_ms, limit, start=start)

    async def ends_at(self, ref: Ref) -> int | None:
        """Return when an object's time is over, in seconds since the Unix epoch; None if it stays."""
        async with self.state.reaching() as client:
            at_ms = await client.zscore(project_prefix(self.project) + EXPIRING, ref.key)
        return None if at_ms is None else int(at_ms) // 1000

    async def due(self, name: str, now_ms: int, limit: int, *, start: int = 0) -> list[tuple[str, str]]:
        """Return kind and id of what stands in a sorted set of the project up to a time."""
        async with self.state.reaching() as client:
            key = project_prefix(self.project) + name
            members: Any = await client.zrangebyscore(key, "-inf", now_ms, start=start, num=limit)
        pairs = [member.decode().partition(":") for member in members]
        return [(kind, object_id) for kind, _, object_id in pairs]
