"""The gateway's own connection to Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.errors import StateUnavailable


class RedisState:
    """Connections to the Redis at ``redis_url``; close it after use."""

    def __init__(self, redis_url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._client = Redis.from_url(
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 1)
        )

    @asynccontextmanager
    async def reaching(self) -> AsyncIterator["Redis"]:
        """Hand out the client.

        Raises:
            StateUnavailable: Redis did not answer, or not in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                yield self._client
        except (RedisError, OSError, TimeoutError) as error:
            raise StateUnavailable(f"Redis cannot be used: {error or 'no answer'}.") from error

    async def close(self) -> None:
        """Close all connections; idempotent."""
        await self._client.aclose()
