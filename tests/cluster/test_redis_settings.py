"""A Redis that may lose what it acknowledged is found out."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.redis_settings import WANTED, weak_settings
from services.errors import StateUnavailable

TIMEOUT_S = 30.0


async def test_the_embedded_server_has_no_weak_setting(redis_server: EmbeddedRedis) -> None:
    assert await weak_settings(redis_server.url, TIMEOUT_S) == []


@pytest.mark.parametrize(
    ("name", "value", "harm"),
    [
        ("appendonly", "no", "what it holds is lost when it ends"),
        ("appendfsync", "everysec", "what was acknowledged last is lost when its host dies"),
        ("maxmemory-policy", "allkeys-lru", "it deletes objects when its memory is full"),
    ],
)
async def test_each_weak_setting_is_named_with_its_harm_and_remedy(
    redis_server: EmbeddedRedis, name: str, value: str, harm: str
) -> None:
    async with Redis.from_url(redis_server.url) as client:
        await client.config_set(name, value)

    [sentence] = await weak_settings(redis_server.url, TIMEOUT_S)
    assert sentence == f"Redis has {name} {value}, so {harm}; set it to {WANTED[name][0]}."


async def test_a_server_that_does_not_tell_is_not_taken_for_a_good_one(redis_server: EmbeddedRedis) -> None:
    async with Redis.from_url(redis_server.url) as client:
        await client.execute_command("ACL", "SETUSER", "default", "-config")  # type: ignore[no-untyped-call]

    [sentence] = await weak_settings(redis_server.url, TIMEOUT_S)
    assert "does not tell its settings" in sentence
    assert all(f"{name} is {wanted}" in sentence for name, (wanted, _) in WANTED.items())


async def test_a_server_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable):
        await weak_settings(f"unix://{tmp_path}/redis.sock", TIMEOUT_S)
