"""The gateway's connections to Redis."""

import asyncio
from pathlib import Path

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import MAX_CONNECTIONS, RedisState


async def test_no_cancellation_is_lost(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)

        async def ask_for_ever() -> None:
            while True:
                async with state.reaching() as client:
                    await client.get("x")

        for num_steps in range(150):  # wherever in a call it comes
            asking = asyncio.create_task(ask_for_ever())
            for _ in range(num_steps % 50):
                await asyncio.sleep(0)
            asking.cancel()
            async with asyncio.timeout(30):
                await asyncio.wait([asking])
            assert asking.cancelled()
        await state.close()


async def test_more_calls_than_connections_wait_for_each_other(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)

        async def increment() -> int:
            async with state.reaching() as client:
                return int(await client.incr("n"))

        numbers = await asyncio.gather(*(increment() for _ in range(5 * MAX_CONNECTIONS)))
        assert sorted(numbers) == list(range(1, 5 * MAX_CONNECTIONS + 1))
        await state.close()
