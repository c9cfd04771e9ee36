"""What every store does, the in-memory one and the one in a real Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import InvalidRequest, NotFound, StateUnavailable
from services.gateway.answering.timeline import MemoryTimelineStore, RedisTimelineStore, TimelineStore
from services.gateway.keys import KeyStore, MemoryKeyStore, RedisKeyStore, key_digest
from services.gateway.redis_state import RedisState
from services.gateway.web.exchange import new_token, request_id
from services.telemetry.clock import ManualClock
from services.telemetry.timeline import Timeline


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[RedisState]:
    async with EmbeddedRedis(tmp_path) as server:
        redis = RedisState(server.url, 30.0)
        yield redis
        await redis.close()


@pytest.fixture(params=["memory", "redis"])
def keys(request: pytest.FixtureRequest) -> KeyStore:
    clock = ManualClock()
    return (
        MemoryKeyStore(clock) if request.param == "memory" else RedisKeyStore(request.getfixturevalue("state"), clock)
    )


@pytest.fixture(params=["memory", "redis"])
def timelines(request: pytest.FixtureRequest) -> TimelineStore:
    if request.param == "memory":
        return MemoryTimelineStore(ManualClock(), 900)
    return RedisTimelineStore(request.getfixturevalue("state"), 900)


def timeline(token: str, project: str = "team") -> Timeline:
    line = Timeline(request_id(token), ManualClock(), project=project)
    line.event("first_token", decode="d1")
    return line


async def test_a_key_is_shown_once_and_kept_as_a_hash(keys: KeyStore) -> None:
    key = await keys.create("team")

    [kept] = await keys.list()
    assert key.startswith("sk-tandem-")
    assert len(key) >= 50
    assert (kept.project, kept.hint) == ("team", key[-4:])
    assert await keys.projects() == {key_digest(key): "team"}
    assert key not in repr(kept)


async def test_a_revoked_key_is_gone(keys: KeyStore) -> None:
    await keys.create("team")
    [kept] = await keys.list()
    await keys.revoke(kept.key_id)

    assert await keys.list() == []
    with pytest.raises(NotFound):
        await keys.revoke(kept.key_id)


@pytest.mark.parametrize("project", ["", " team", "x" * 65, "a\nb"])
async def test_project_names_are_checked(keys: KeyStore, project: str) -> None:
    with pytest.raises(InvalidRequest):
        await keys.create(project)


async def test_a_timeline_is_found_by_any_id_of_its_request(timelines: TimelineStore) -> None:
    token = new_token()
    await timelines.put(timeline(token).record())

    for any_id in (f"req_{token}", f"chatcmpl-{token}", f"cmpl-{token}"):
        found = await timelines.get("team", any_id)
        assert found["request_id"] == f"req_{token}"
        assert [step["name"] for step in found["steps"]] == ["first_token"]


async def test_a_timeline_belongs_to_its_project(timelines: TimelineStore) -> None:
    token = new_token()
    await timelines.put(timeline(token, "a:b").record())

    for project, any_id in (("team", f"req_{token}"), ("a", f"b:{token}"), ("a", f"req_b:{token}")):
        with pytest.raises(NotFound):
            await timelines.get(project, any_id)


async def test_a_redis_that_is_away_is_named_as_such(tmp_path: Path) -> None:
    away = RedisState(f"unix://{tmp_path}/none.sock", 1.0)

    with pytest.raises(StateUnavailable):
        await RedisKeyStore(away, ManualClock()).projects()
    with pytest.raises(StateUnavailable):
        await RedisTimelineStore(away, 900).put(timeline(new_token()).record())
    await away.close()


async def test_timelines_expire(state: RedisState) -> None:
    token = new_token()
    await RedisTimelineStore(state, 900).put(timeline(token).record())

    async with state.reaching() as client:
        assert 800 < await client.ttl(f"tandem:timeline:team:{token}") <= 900
