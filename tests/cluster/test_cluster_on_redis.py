"""Presence and view together on a real Redis that goes away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.presence import Presence
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import MemberLoad
from services.cluster.view import MemberView
from services.telemetry.clock import ManualClock, SystemClock
from tests.cluster.samples import CARD, SECRET, append_only_files, member

LEASE_S = 0.5


@pytest.fixture
async def registry(redis_server: EmbeddedRedis) -> AsyncIterator[RedisRegistry]:
    registry = RedisRegistry(redis_server.url, SECRET, SystemClock(), LEASE_S, timeout_s=30.0)
    yield registry
    await registry.close()


@pytest.mark.parametrize("loses_data", [False, True])
async def test_a_worker_is_known_throughout_an_outage(
    redis_server: EmbeddedRedis, registry: RedisRegistry, tmp_path: Path, loses_data: bool
) -> None:
    clock = SystemClock()
    presence = Presence(registry, member("a"), CARD, load=MemberLoad, clock=clock, lease_s=LEASE_S)
    async with presence, MemberView(registry, clock, refresh_s=0.02, grace_s=30) as view:
        await view.wait_for(lambda members: len(members) == 1, timeout_s=10)
        await redis_server.stop()
        await view.refresh()
        assert view.is_stale
        if loses_data:
            for path in append_only_files(tmp_path):
                path.unlink()
        await redis_server.start()
        async with asyncio.timeout(30):
            while not await registry.members():
                assert [listed.member_id for listed in view.members()] == ["a"]
                await asyncio.sleep(0.01)
        await view.refresh()
        assert [listed.member_id for listed in view.members()] == ["a"]
        assert not view.is_stale
        assert await registry.card(CARD.digest) == CARD
    assert list(await registry.members()) == []


async def test_a_member_with_another_secret_is_not_seen(redis_server: EmbeddedRedis, registry: RedisRegistry) -> None:
    stranger = RedisRegistry(redis_server.url, b"another secret of the same size!", ManualClock(), timeout_s=30.0)
    await stranger.join(member("stranger"), CARD)
    await registry.join(member("a"), CARD)
    view = MemberView(registry, ManualClock())
    await view.refresh()
    assert [listed.member_id for listed in view.members()] == ["a"]
    assert [listed.member_id for listed in await stranger.members()] == ["stranger"]
    await stranger.close()
