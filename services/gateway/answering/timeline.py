"""Timelines of recent requests, readable through any gateway by the project they belong to.

tandem:timeline:<project>:<token>    string: JSON of a TimelineRecord, expires
"""

from typing import Any, Protocol

import orjson

from services.errors import NotFound
from services.gateway.redis_state import RedisState
from services.gateway.web.exchange import token_in
from services.telemetry.clock import Clock
from services.telemetry.timeline import TimelineRecord


class TimelineStore(Protocol):
    """Where timelines are kept. All methods raise StateUnavailable when it cannot be reached."""

    async def put(self, record: TimelineRecord) -> None:
        """Keep a timeline for a while."""

    async def get(self, project: str, any_id: str) -> dict[str, Any]:
        """Return the timeline of a request of ``project``, by its id or the id of its answer.

        Raises:
            NotFound: no such request of this project, or too long ago.
        """


class MemoryTimelineStore:
    """Timelines in this process, for tests."""

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}

    async def put(self, record: TimelineRecord) -> None:
        """Keep a timeline for a while."""
        self._kept[_key(record.project, record.request_id)] = (self._clock.now() + self._ttl_s, record.to_dict())

    async def get(self, project: str, any_id: str) -> dict[str, Any]:
        """Return the timeline of a request of ``project``."""
        expires_s, values = self._kept.get(_key(project, any_id), (0.0, {}))
        if expires_s <= self._clock.now():
            raise _absent(any_id)
        return values


class RedisTimelineStore:
    """Timelines in Redis."""

    def __init__(self, state: RedisState, ttl_s: int) -> None:
        self._state = state
        self._ttl_s = ttl_s

    async def put(self, record: TimelineRecord) -> None:
        """Keep a timeline for a while."""
        async with self._state.reaching() as client:
            await client.set(_key(record.project, record.request_id), orjson.dumps(record.to_dict()), ex=self._ttl_s)

    async def get(self, project: str, any_id: str) -> dict[str, Any]:
        """Return the timeline of a request of ``project``."""
        async with self._state.reaching() as client:
            text = await client.get(_key(project, any_id))
        if text is None:
            raise _absent(any_id)
        values: dict[str, Any] = orjson.loads(text)
        return values


def _key(project: str, any_id: str) -> str:
    token = token_in(any_id)
    if not (token.isascii() and token.isalnum()):  # else one project's name could reach into another's keys
        raise _absent(any_id)
    return f"tandem:timeline:{project}:{token}"


def _absent(any_id: str) -> NotFound:
    return NotFound(f"No recent request has the id '{any_id}'.")
