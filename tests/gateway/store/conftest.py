from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import RedisState
from services.gateway.store.object_store import Objects, ObjectStore


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[RedisState]:
    async with EmbeddedRedis(tmp_path) as server:
        redis = RedisState(server.url, 30.0)
        yield redis
        await redis.close()


@pytest.fixture
def store(state: RedisState) -> ObjectStore:
    return ObjectStore(state)


@pytest.fixture
def objects(store: ObjectStore) -> Objects:
    return store.of("team")
