"""The gateway's connections to Redis."""

import asyncio
import os
import re
import signal
from pathlib import Path

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import StateUnavailable
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


async def test_silence_is_told_and_costs_no_connection(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 0.05)

        async def increment() -> str:
            try:
                async with state.reaching() as client:
                    await client.incr("n")
            except StateUnavailable as error:
                return error.message
            return ""

        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        refusals = await asyncio.gather(*(increment() for _ in range(2 * MAX_CONNECTIONS)))
        assert all(re.fullmatch(r"Redis cannot be used: \w.*\.", refusal) for refusal in refusals)
        os.kill(server.pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            while await increment():
                pass
        await state.close()
