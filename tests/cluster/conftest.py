from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis(tmp_path) as server:
        yield server
