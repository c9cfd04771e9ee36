import asyncio
import logging
from collections.abc import Callable, Sequence

import pytest

from services.cluster.memory import MemoryRegistry
from services.cluster.registry import Member
from services.cluster.view import MAX_CACHED_CARDS, MembershipChange, MemberView
from services.errors import DeadlineExceeded, IntegrityError, NotFound, StateUnavailable
from services.kv.card import ModelCard
from tests.cluster.samples import CARD, member, other_card
from tests.cluster.stepping import SteppingClock, settle


class CountingRegistry(MemoryRegistry):
    """Counts how often cards are fetched."""

    num_fetches = 0

    async def card(self, digest: str) -> ModelCard:
        self.num_fetches += 1
        await asyncio.sleep(0)
        return await super().card(digest)


class Gateway:
    """A view of a registry in memory."""

    def __init__(self) -> None:
        self.clock = SteppingClock()
        self.registry = CountingRegistry(self.clock)
        self.view = MemberView(self.registry, self.clock, grace_s=6.0)

    async def join(self, *member_ids: str) -> None:
        for member_id in member_ids:
            await self.registry.join(member(member_id), CARD)

    def ids(self) -> list[str]:
        return [listed.member_id for listed in self.view.members()]


def _ids(change: MembershipChange) -> tuple[list[str], list[str]]:
    return [m.member_id for m in change.joined], [m.member_id for m in change.left]


def _has(count: int) -> Callable[[Sequence[Member]], bool]:
    return lambda members: len(members) == count


async def test_a_view_is_empty_and_stale_until_it_was_refreshed() -> None:
    gateway = Gateway()
    await gateway.join("a")
    assert (gateway.ids(), gateway.view.is_stale) == ([], True)
    await gateway.view.refresh()
    assert (gateway.ids(), gateway.view.is_stale) == (["a"], False)


async def test_a_started_view_follows_the_registry() -> None:
    gateway = Gateway()
    async with gateway.view:
        await settle()
        await gateway.join("b", "a")
        await gateway.clock.advance(1.0)
        assert gateway.ids() == ["a", "b"]
        await gateway.registry.leave("a")
        await gateway.clock.advance(1.0)
        assert gateway.ids() == ["b"]
    assert set(gateway.clock.delays_s) == {1.0}


async def test_the_last_known_members_stand_while_the_store_is_away(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway()
    await gateway.join("a")
    await gateway.view.refresh()
    gateway.registry.is_reachable = False
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await gateway.view.refresh()
    assert (gateway.ids(), gateway.view.is_stale) == (["a"], True)
    assert [record.getMessage() for record in caplog.records] == ["registry.away"]
    gateway.registry.is_reachable = True
    await gateway.view.refresh()
    assert (gateway.ids(), gateway.view.is_stale) == (["a"], False)


async def test_after_an_outage_with_loss_members_have_time_to_join_again() -> None:
    gateway = Gateway()
    await gateway.join("a", "b")
    await gateway.view.refresh()
    gateway.registry.is_reachable = False
    await gateway.view.refresh()
    gateway.registry.is_reachable = True
    gateway.registry.lose_data()
    await gateway.view.refresh()
    assert gateway.ids() == ["a", "b"]
    await gateway.join("a")
    await gateway.clock.advance(5.9)
    await gateway.view.refresh()
    assert gateway.ids() == ["a", "b"]
    await gateway.clock.advance(0.2)
    await gateway.view.refresh()
    assert gateway.ids() == ["a"]


async def test_who_was_seen_after_an_outage_leaves_at_once() -> None:
    gateway = Gateway()
    await gateway.join("a", "b")
    await gateway.view.refresh()
    gateway.registry.is_reachable = False
    await gateway.view.refresh()
    gateway.registry.is_reachable = True
    await gateway.view.refresh()
    await gateway.registry.leave("b")
    await gateway.view.refresh()
    assert gateway.ids() == ["a"]


async def test_changes_begin_with_the_members_known_and_tell_each_coming_and_going() -> None:
    gateway = Gateway()
    await gateway.join("a")
    await gateway.view.refresh()
    changes = gateway.view.changes()
    assert _ids(await anext(changes)) == (["a"], [])
    waiting = asyncio.ensure_future(anext(changes))
    await gateway.registry.renew(member("a", running=1))
    await gateway.view.refresh()
    await settle()
    assert not waiting.done()  # a new load is no change
    await gateway.registry.leave("a")
    await gateway.join("b")
    await gateway.view.refresh()
    assert _ids(await waiting) == (["b"], ["a"])
    await gateway.view.close()
    assert [change async for change in changes] == []


async def test_a_slow_reader_gets_several_changes_as_one() -> None:
    gateway = Gateway()
    changes = gateway.view.changes()
    for member_id in ("a", "b", "c"):
        await gateway.join(member_id)
        await gateway.view.refresh()
    await gateway.registry.leave("b")
    await gateway.view.refresh()
    assert _ids(await anext(changes)) == (["a", "c"], [])
    await gateway.view.close()
    await changes.aclose()


async def test_waiting_ends_when_the_cluster_is_as_wanted() -> None:
    gateway = Gateway()
    waiting = asyncio.ensure_future(gateway.view.wait_for(_has(2), timeout_s=60))
    await gateway.join("a")
    await gateway.view.refresh()
    await settle()
    assert not waiting.done()
    await gateway.join("b")
    await gateway.view.refresh()
    assert [listed.member_id for listed in await waiting] == ["a", "b"]


async def test_waiting_has_a_deadline() -> None:
    with pytest.raises(DeadlineExceeded):
        await Gateway().view.wait_for(_has(1), timeout_s=0)


async def test_a_card_is_fetched_once_also_by_many_at_once() -> None:
    gateway = Gateway()
    await gateway.join("a")
    cards = await asyncio.gather(*(gateway.view.card(CARD.digest) for _ in range(5)))
    assert cards == [CARD] * 5
    assert gateway.registry.num_fetches == 1
    gateway.registry.is_reachable = False
    assert await gateway.view.card(CARD.digest) == CARD


async def test_the_card_used_longest_ago_is_forgotten_first() -> None:
    gateway = Gateway()
    cards = [other_card(f"model {index}") for index in range(MAX_CACHED_CARDS + 1)]
    for index, card in enumerate(cards):
        await gateway.registry.join(member(f"m{index}", card=card), card)
    for card in [*cards[:-1], cards[0], cards[-1]]:
        await gateway.view.card(card.digest)
    gateway.registry.is_reachable = False
    assert await gateway.view.card(cards[0].digest) == cards[0]
    with pytest.raises(StateUnavailable):
        await gateway.view.card(cards[1].digest)


async def test_a_card_that_failed_is_asked_for_again() -> None:
    gateway = Gateway()
    with pytest.raises(NotFound):
        await gateway.view.card(CARD.digest)
    gateway.registry.put_card_text(CARD.digest, "{}")
    with pytest.raises(IntegrityError):
        await gateway.view.card(CARD.digest)
    gateway.registry.put_card_text(CARD.digest, CARD.to_json())
    assert await gateway.view.card(CARD.digest) == CARD
