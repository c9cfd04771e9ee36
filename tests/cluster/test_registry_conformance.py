"""What every registry does, the in-memory one and the one in a real Redis."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from redis.asyncio import Redis

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.memory import MemoryRegistry
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import DrainRequests, MemberLoad, Registry, Role
from services.errors import IntegrityError, InternalError, NotFound, StateUnavailable
from services.telemetry.clock import ManualClock
from tests.cluster.samples import CARD, SECRET, member, other_card


class Harness(Protocol):
    registry: Registry
    notes: DrainRequests

    async def lapse(self) -> None:
        """End every lease."""

    async def lose_data(self) -> None: ...

    async def put_card_text(self, digest: str, text: str) -> None: ...

    async def go_away(self) -> None: ...


class MemoryHarness:
    def __init__(self) -> None:
        self._clock = ManualClock()
        self._memory = MemoryRegistry(self._clock)
        self.registry: Registry = self._memory
        self.notes: DrainRequests = self._memory

    async def lapse(self) -> None:
        self._clock.advance(15.0)

    async def lose_data(self) -> None:
        self._memory.lose_data()

    async def put_card_text(self, digest: str, text: str) -> None:
        self._memory.put_card_text(digest, text)

    async def go_away(self) -> None:
        self._memory.is_reachable = False


class RedisHarness:
    def __init__(self, server: EmbeddedRedis, registry: RedisRegistry, client: "Redis") -> None:
        self.registry: Registry = registry
        self.notes: DrainRequests = registry
        self._server = server
        self._client = client

    async def lapse(self) -> None:
        for listed in await self.registry.members():
            await self._client.zadd("tandem:members", {listed.member_id: 1})

    async def lose_data(self) -> None:
        await self._client.flushall()

    async def put_card_text(self, digest: str, text: str) -> None:
        await self._client.set(f"tandem:card:{digest}", text)

    async def go_away(self) -> None:
        await self._server.stop()


@pytest.fixture(params=["memory", "redis"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    if request.param == "memory":
        yield MemoryHarness()
        return
    async with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        registry = RedisRegistry(server.url, SECRET, ManualClock(), timeout_s=30.0)
        yield RedisHarness(server, registry, client)
        await registry.close()


async def test_a_new_cluster_has_no_members(harness: Harness) -> None:
    assert list(await harness.registry.members()) == []


async def test_members_come_back_as_they_joined_in_the_order_of_their_ids(harness: Harness) -> None:
    second = replace(member("b", role=Role.PREFILL), draining=True)
    await harness.registry.join(second, CARD)
    await harness.registry.join(member("a", running=3), CARD)
    assert list(await harness.registry.members()) == [member("a", running=3), second]


async def test_joining_again_replaces_the_member(harness: Harness) -> None:
    await harness.registry.join(member("a", running=1), CARD)
    await harness.registry.join(member("a", running=2), CARD)
    assert list(await harness.registry.members()) == [member("a", running=2)]


async def test_renewing_publishes_load_and_draining(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    changed = replace(member("a"), draining=True, load=MemberLoad(1, 2, 3, 4, 5, 6.5, 7, True))
    await harness.registry.renew(changed)
    assert list(await harness.registry.members()) == [changed]


async def test_a_member_whose_lease_ended_does_not_belong(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    await harness.lapse()
    assert list(await harness.registry.members()) == []


async def test_a_lapsed_lease_is_not_renewed_but_taken_anew(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    await harness.lapse()
    with pytest.raises(NotFound):
        await harness.registry.renew(member("a"))
    await harness.registry.join(member("a"), CARD)
    assert list(await harness.registry.members()) == [member("a")]


async def test_who_never_joined_cannot_renew(harness: Harness) -> None:
    with pytest.raises(NotFound):
        await harness.registry.renew(member("a"))
    assert list(await harness.registry.members()) == []


async def test_a_store_that_lost_its_data_asks_to_join_again(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    await harness.lose_data()
    with pytest.raises(NotFound):
        await harness.registry.renew(member("a"))
    await harness.registry.join(member("a"), CARD)
    assert await harness.registry.card(CARD.digest) == CARD


async def test_leaving_withdraws_one_member(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    await harness.registry.join(member("b"), CARD)
    await harness.registry.leave("a")
    assert list(await harness.registry.members()) == [member("b")]


async def test_leaving_without_having_joined_is_ignored(harness: Harness) -> None:
    await harness.registry.leave("nobody")


async def test_cards_are_found_by_digest(harness: Harness) -> None:
    other = other_card("other")
    await harness.registry.join(member("a"), CARD)
    await harness.registry.join(member("b", card=other), other)
    assert await harness.registry.card(CARD.digest) == CARD
    assert await harness.registry.card(other.digest) == other


async def test_a_card_outlives_its_members(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    await harness.registry.leave("a")
    assert await harness.registry.card(CARD.digest) == CARD


async def test_an_unknown_card_is_not_found(harness: Harness) -> None:
    with pytest.raises(NotFound):
        await harness.registry.card(CARD.digest)


@pytest.mark.parametrize("text", ["{}", "", CARD.to_json().replace("128", "129")])
async def test_a_changed_card_is_refused(harness: Harness, text: str) -> None:
    await harness.registry.join(member("a"), CARD)
    await harness.put_card_text(CARD.digest, text)
    with pytest.raises(IntegrityError):
        await harness.registry.card(CARD.digest)


async def test_a_card_of_another_version_is_refused(harness: Harness) -> None:
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256 of "{}"
    await harness.put_card_text(digest, "{}")
    with pytest.raises(IntegrityError):
        await harness.registry.card(digest)


async def test_a_member_cannot_join_with_another_models_card(harness: Harness) -> None:
    with pytest.raises(InternalError):
        await harness.registry.join(member("a"), other_card("other"))


async def test_every_call_says_when_the_store_is_away(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    await harness.go_away()
    calls = (
        harness.registry.join(member("a"), CARD),
        harness.registry.renew(member("a")),
        harness.registry.leave("a"),
        harness.registry.members(),
        harness.registry.card(CARD.digest),
    )
    for call in calls:
        with pytest.raises(StateUnavailable):
            await call


async def test_a_note_asks_one_member_to_leave(harness: Harness) -> None:
    await harness.registry.join(member("a"), CARD)
    assert not await harness.notes.is_asked_to_leave("a")
    await harness.notes.ask_to_leave("a")
    assert await harness.notes.is_asked_to_leave("a")
    assert not await harness.notes.is_asked_to_leave("b")
    assert list(await harness.registry.members()) == [member("a")]


async def test_a_note_cannot_be_left_or_read_while_the_store_is_away(harness: Harness) -> None:
    await harness.go_away()
    with pytest.raises(StateUnavailable):
        await harness.notes.ask_to_leave("a")
    with pytest.raises(StateUnavailable):
        await harness.notes.is_asked_to_leave("a")
