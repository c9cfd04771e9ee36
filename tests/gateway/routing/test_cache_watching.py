import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.cluster.memory import MemoryRegistry
from services.cluster.registry import Role
from services.cluster.view import MemberView
from services.gateway.routing.cache_watching import CacheWatching
from services.gateway.routing.prefixes import PrefixIndex
from services.telemetry.clock import ManualClock
from tests.gateway.cache_twin import CacheTwin
from tests.gateway.twins import card, member

HASHES = [bytes([index]) * 16 for index in range(4)]


@dataclass
class World:
    registry: MemoryRegistry
    view: MemberView
    prefixes: PrefixIndex
    twin: CacheTwin

    async def join(self, member_id: str, role: Role = Role.DECODE) -> None:
        await self.registry.join(member(member_id, role), card())
        await self.view.refresh()


@asynccontextmanager
async def watching() -> AsyncIterator[World]:
    clock = ManualClock()
    registry = MemoryRegistry(clock, lease_s=1e9)
    world = World(registry, MemberView(registry, clock), PrefixIndex(), CacheTwin())
    following = asyncio.create_task(CacheWatching(world.view, world.prefixes, world.twin, clock).follow())
    try:
        yield world
    finally:
        following.cancel()
        await asyncio.wait([following])
        assert not world.twin.open


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def test_what_workers_say_is_known() -> None:
    async with watching() as world:
        await world.join("d1")
        await world.join("p1", Role.PREFILL)
        world.twin.tell("d1", added=HASHES)
        world.twin.tell("p1", added=HASHES[:2])
        await until(lambda: world.prefixes.overlaps(HASHES) == {"d1": 4, "p1": 2})
        world.twin.tell("d1", removed=HASHES[1:])
        await until(lambda: world.prefixes.overlaps(HASHES) == {"d1": 1, "p1": 2})


async def test_who_leaves_is_forgotten() -> None:
    async with watching() as world:
        await world.join("d1")
        world.twin.tell("d1", added=HASHES)
        await until(lambda: world.prefixes.overlaps(HASHES))
        await world.registry.leave("d1")
        await world.view.refresh()
        await until(lambda: not world.twin.open)
        assert not world.prefixes.overlaps(HASHES)


async def test_a_worker_that_was_lost_is_forgotten_and_heard_again() -> None:
    async with watching() as world:
        await world.join("d1")
        world.twin.tell("d1", added=HASHES)
        await until(lambda: world.prefixes.overlaps(HASHES))
        world.twin.lose("d1")
        await until(lambda: not world.prefixes.overlaps(HASHES))
        world.twin.tell("d1", added=HASHES[:1])
        await until(lambda: world.prefixes.overlaps(HASHES) == {"d1": 1})


async def test_embedding_workers_have_no_cache() -> None:
    async with watching() as world:
        await world.join("e1", Role.EMBED)
        await world.join("d1")
        await until(lambda: world.twin.open == ["d1"])
