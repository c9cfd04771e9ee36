import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.record import MemberRecord
from services.cluster.redis_registry import RedisRegistry
from services.errors import StateUnavailable
from services.telemetry.clock import ManualClock
from tests.cluster.samples import CARD, SECRET, member, other_card

FOREVER_MS = 10**15


@pytest.fixture
async def registry(redis_server: EmbeddedRedis) -> AsyncIterator[RedisRegistry]:
    registry = RedisRegistry(redis_server.url, SECRET, ManualClock(), timeout_s=30.0)
    yield registry
    await registry.close()


@pytest.fixture
async def client(redis_server: EmbeddedRedis) -> "AsyncIterator[Redis]":
    async with Redis.from_url(redis_server.url) as client:
        yield client


async def _put(client: "Redis", member_id: str, text: bytes) -> None:
    await client.zadd("tandem:members", {member_id: FOREVER_MS})
    await client.set(f"tandem:member:{member_id}", text)


async def test_the_store_holds_exactly_the_documented_keys(registry: RedisRegistry, client: "Redis") -> None:
    await registry.join(member("a"), CARD)
    assert sorted(await client.keys("*")) == [
        f"tandem:card:{CARD.digest}".encode(),
        b"tandem:member:a",
        b"tandem:members",
    ]
    assert 0 < await client.pttl("tandem:member:a") <= 15_000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"\xff\xfe not text",
        MemberRecord(member("a"), FOREVER_MS).seal(b"another secret, long enough"),
        MemberRecord(member("a"), FOREVER_MS).seal(SECRET).replace(b"127.0.0.1", b"127.0.0.2"),
        MemberRecord(member("b"), FOREVER_MS).seal(SECRET),
        MemberRecord(member("a"), 1).seal(SECRET),
    ],
    ids=["empty", "unsigned", "bytes", "other secret", "changed", "other member", "replayed"],
)
async def test_a_record_that_cannot_be_believed_is_ignored_counted_and_logged_once(
    registry: RedisRegistry, client: "Redis", caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    await registry.join(member("good"), CARD)
    await _put(client, "a", text)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert list(await registry.members()) == [member("good")]
    assert registry.num_ignored == 1
    assert [record.getMessage() for record in caplog.records] == ["member.ignored"]


async def test_an_ignored_member_counts_again_after_it_was_gone(registry: RedisRegistry, client: "Redis") -> None:
    for _ in range(2):
        await _put(client, "a", b"{}")
        await registry.members()
        await registry.leave("a")
        await registry.members()
    assert registry.num_ignored == 2


async def test_ignored_members_are_told(redis_server: EmbeddedRedis, client: "Redis") -> None:
    told: list[None] = []
    registry = RedisRegistry(redis_server.url, SECRET, ManualClock(), on_ignored=lambda: told.append(None))
    await _put(client, "a", b"{}")
    try:
        for _ in range(2):
            await registry.members()
    finally:
        await registry.close()
    assert len(told) == 1


async def test_the_host_clock_does_not_judge_leases(redis_server: EmbeddedRedis, registry: RedisRegistry) -> None:
    await registry.join(member("a"), CARD)
    for start_s in (0.0, 1e10):
        reader = RedisRegistry(redis_server.url, SECRET, ManualClock(start_s), timeout_s=30.0)
        assert list(await reader.members()) == [member("a")]
        await reader.close()


async def test_redis_ends_a_lease_and_the_next_renewal_removes_its_id(
    redis_server: EmbeddedRedis, registry: RedisRegistry, client: "Redis"
) -> None:
    short = RedisRegistry(redis_server.url, SECRET, ManualClock(), lease_s=0.05, timeout_s=30.0)
    await short.join(member("short"), CARD)
    await registry.join(member("long"), CARD)
    async with asyncio.timeout(30):
        while await client.exists("tandem:member:short"):
            await asyncio.sleep(0.01)
    assert list(await registry.members()) == [member("long")]
    await registry.renew(member("long"))
    assert await client.zrange("tandem:members", 0, -1) == [b"long"]
    await short.close()


async def test_a_card_is_written_once_and_kept_alive_by_renewals(registry: RedisRegistry, client: "Redis") -> None:
    key = f"tandem:card:{CARD.digest}"
    await registry.join(member("a"), CARD)
    await client.pexpire(key, 60_000)
    await registry.renew(member("a"))
    assert await client.pttl(key) > 60_000
    writes = (await client.info("commandstats"))["cmdstat_set"]["calls"]
    await registry.join(member("b"), CARD)
    assert (await client.info("commandstats"))["cmdstat_set"]["calls"] == writes + 1  # the member, not the card


async def test_members_are_listed_without_scanning(registry: RedisRegistry, client: "Redis") -> None:
    await registry.join(member("a"), CARD)
    await registry.renew(member("a"))
    await registry.members()
    used = await client.info("commandstats")
    assert not {"cmdstat_keys", "cmdstat_scan"} & used.keys()


async def test_the_registry_finds_redis_again_after_a_restart(
    redis_server: EmbeddedRedis, registry: RedisRegistry
) -> None:
    await registry.join(member("a"), CARD)
    await redis_server.stop()
    with pytest.raises(StateUnavailable):
        await registry.members()
    await redis_server.start()
    assert list(await registry.members()) == [member("a")]
    await registry.renew(member("a", running=1))
    assert list(await registry.members()) == [member("a", running=1)]


async def test_a_redis_that_does_not_answer_is_away_after_the_timeout() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        registry = RedisRegistry(f"redis://127.0.0.1:{port}/0", SECRET, ManualClock(), timeout_s=0.05)
        with pytest.raises(StateUnavailable):
            await registry.members()
        await registry.close()


async def test_a_redis_over_tcp_serves_as_well(redis_server: EmbeddedRedis, registry: RedisRegistry) -> None:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(redis_server.socket_path)
        await asyncio.gather(forward(reader, to_redis), forward(from_redis, writer))

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        over_tcp = RedisRegistry(f"redis://127.0.0.1:{port}/0", SECRET, ManualClock(), timeout_s=30.0)
        await over_tcp.join(member("tcp"), CARD)
        assert list(await registry.members()) == [member("tcp")]
        await over_tcp.close()


async def test_a_note_stands_for_a_day_and_only_the_cluster_can_leave_one(
    registry: RedisRegistry, redis_server: EmbeddedRedis, client: "Redis"
) -> None:
    stranger = RedisRegistry(redis_server.url, b"another secret, long enough", ManualClock(), timeout_s=30.0)
    await stranger.ask_to_leave("a")
    await stranger.close()
    await client.set("tandem:drain:b", "please")
    assert not await registry.is_asked_to_leave("a")
    assert not await registry.is_asked_to_leave("b")
    await registry.ask_to_leave("a")
    await client.copy("tandem:drain:a", "tandem:drain:c")  # another member's note
    assert await registry.is_asked_to_leave("a")
    assert not await registry.is_asked_to_leave("c")
    assert 0 < await client.pttl("tandem:drain:a") <= 24 * 3600 * 1000


async def test_members_stay_and_renew_when_redis_is_full(registry: RedisRegistry, client: "Redis") -> None:
    await registry.join(member("a"), CARD)
    await client.config_set("maxmemory", 1)

    with pytest.raises(OutOfMemoryError):
        await client.set("anything", b"x")
    await registry.renew(member("a"))
    with pytest.raises(StateUnavailable):
        await registry.join(member("b", card=other_card("another")), other_card("another"))

    assert [one.member_id for one in await registry.members()] == ["a"]
    assert 0 < await client.pttl("tandem:member:a") <= 15_000
