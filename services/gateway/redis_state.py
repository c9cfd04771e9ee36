"""The gateway's own connection to Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.errors import StateUnavailable

MAX_CONNECTIONS = 64
"""For commands that are answered at once; more of them wait for each other, as they would in Redis."""
MAX_WAITING_CONNECTIONS = 8192
"""For commands that wait for something to happen; each has a connection of its own."""


class RedisState:
    """Connections to the Redis at ``redis_url``; close it after use."""

    def __init__(self, redis_url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
        )
        self._client = Redis.from_pool(pool)
        self._waiting_client = Redis.from_url(
            redis_url,
            max_connections=MAX_WAITING_CONNECTIONS,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
        )

    @asynccontextmanager
    async def reaching(self, *, waits: bool = False) -> AsyncIterator["Redis"]:
        """Hand out the client; ``waits`` is for commands that Redis answers only when something happens.

        Raises:
            StateUnavailable: Redis did not answer, or not in time.
        """
        task = asyncio.current_task()
        num_cancellations = task.cancelling() if task is not None else 0
        try:
            async with asyncio.timeout(self._timeout_s):
                yield self._waiting_client if waits else self._client
        except (RedisError, OSError, TimeoutError) as error:
            raise StateUnavailable(f"Redis cannot be used: {str(error) or 'no answer'}.") from error
        # The library sends by asyncio.wait_for, which loses a cancellation that meets its end (Python 3.11).
        if task is not None and task.cancelling() > num_cancellations:
            raise asyncio.CancelledError

    async def close(self) -> None:
        """Close all connections; idempotent."""
        await self._client.aclose()
        await self._waiting_client.aclose()
