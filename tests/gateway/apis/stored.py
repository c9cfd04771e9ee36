"""A gateway over a real Redis, and what requests for objects get."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import RedisState
from services.gateway.store.object_store import ObjectStore
from services.gateway.store.quota import Quota
from tests.gateway.twins import World, world


@asynccontextmanager
async def stored_world(folder: Path, **changes: Any) -> AsyncIterator[World]:
    """A gateway whose objects are in a Redis of its own; ``changes`` are settings."""
    quota = Quota(changes.get("max_project_objects", 0), changes.get("max_project_file_bytes", 0))
    async with EmbeddedRedis(folder) as server:
        state = RedisState(server.url, 30.0)
        try:
            async with world(objects=ObjectStore(state, quota), **changes) as w:
                yield w
        finally:
            await state.close()


def refusal(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """Return status and error of a refused request."""
    return response.status_code, response.json()["error"]


async def ids(w: World, path: str, **params: Any) -> list[str]:
    """Return the ids on a page of a list."""
    listed = (await w.client.get(path, params=params)).json()
    return [each["id"] for each in listed["data"]]
