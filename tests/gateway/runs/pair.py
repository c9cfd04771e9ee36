"""Two gateways over one Redis, each with a decode worker of its own that a test can hold up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import RedisState
from services.gateway.store.object_store import ObjectStore
from services.telemetry.clock import ManualClock
from tests.gateway.runs.client import DEADLINE_S, Caller
from tests.gateway.twins import END_ID, Script, World, tokens, world

LONG = "hello world, what is the capital of France? Paris is the capital of France. " * 3
LEASE_S = 10.0


@dataclass
class Pair:
    """The gateways and what they share."""

    first: World
    second: World
    redis: EmbeddedRedis
    clock: ManualClock

    @property
    def a(self) -> Caller:
        return Caller(self.first)

    @property
    def b(self) -> Caller:
        return Caller(self.second)

    async def lapse(self) -> None:
        """Let all leases end, and the second gateway look for runs without one."""
        self.clock.advance(LEASE_S + 1)
        await self.second.gateway.sweeper.sweep()


@asynccontextmanager
async def pair(folder: Path, **changes: Any) -> AsyncIterator[Pair]:
    """Both gateways; ``changes`` are settings and parts of both."""
    clock = ManualClock()
    async with EmbeddedRedis(folder) as redis, AsyncExitStack() as stack:
        worlds = []
        for _ in range(2):
            state = RedisState(redis.url, 30.0)
            stack.push_async_callback(state.close)
            gateway = world(objects=ObjectStore(state), clock=clock, run_lease_s=LEASE_S, **changes)
            worlds.append(await stack.enter_async_context(gateway))
            worlds[-1].decode.default = long_answer()
        yield Pair(worlds[0], worlds[1], redis, clock)


def long_answer(**changes: Any) -> Script:
    return Script([*tokens(LONG), END_ID], **changes)


async def until_hanging(w: World) -> None:
    """Wait until the decode worker of a gateway says nothing more, and what it said is written down."""
    async with asyncio.timeout(DEADLINE_S):
        await w.decode.hanging.wait()
        held = list(w.gateway.runs.held().values())
        num_written = -1
        while (last := sum(run.last_event for run in held)) != num_written:
            num_written = last
            await asyncio.sleep(0.2)
