"""Two gateways over one Redis, each with a decode worker of its own that a test can hold up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import RedisState
from services.gateway.store.object_store import ObjectStore
from services.telemetry.clock import ManualClock
from tests.gateway.runs.client import DEADLINE_S, Caller
from tests.gateway.twins import END_ID, Script, World, tokens, world

LONG = "hello world, what is the capital of France? Paris is the capital of France. " * 3
LEASE_S = 10.0


class Silent(Protocol):
    """Something that tells when it says nothing more."""

    @property
    def hanging(self) -> asyncio.Event: ...


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


async def until_hanging(w: World, num_tokens: int) -> None:
    """Wait until the decode worker of a gateway says nothing more, and what it said is written down."""
    await until_written(w.decode, w, num_tokens)


async def until_written(model: Silent, w: World, num_tokens: int) -> None:
    """Wait until a model says nothing more, and all of its tokens are in the log of the gateway's only run."""
    async with asyncio.timeout(DEADLINE_S):
        await model.hanging.wait()
        [held] = w.gateway.jobs.held().values()
        while sum(len(entry.token_ids) for entry in await held.jobs.read(held.ref, 0)) < num_tokens:
            await asyncio.sleep(0.005)
