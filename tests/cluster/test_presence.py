import logging
from dataclasses import replace

import pytest

from services.cluster.memory import MemoryRegistry
from services.cluster.presence import Presence
from services.cluster.registry import MemberLoad
from services.errors import DeadlineExceeded, InternalError
from tests.cluster.samples import CARD, member, other_card
from tests.cluster.stepping import SteppingClock, settle

LONGEST_INTERVAL_S = 3.6


class Worker:
    """A presence with a load that a test sets."""

    def __init__(self) -> None:
        self.clock = SteppingClock()
        self.registry = MemoryRegistry(self.clock)
        self.load = MemberLoad()
        self.presence = Presence(self.registry, member("a"), CARD, load=lambda: self.load, clock=self.clock)


def _events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


async def test_it_joins_with_its_card_and_leaves_on_close() -> None:
    worker = Worker()
    async with worker.presence as presence:
        await presence.wait_joined(10)
        assert [listed.member_id for listed in await worker.registry.members()] == ["a"]
        assert await worker.registry.card(CARD.digest) == CARD
    assert list(await worker.registry.members()) == []
    assert not presence.is_joined


async def test_every_renewal_publishes_the_load_of_that_moment() -> None:
    worker = Worker()
    async with worker.presence:
        await settle()
        worker.load = MemberLoad(running=5)
        await worker.clock.advance(LONGEST_INTERVAL_S)
        assert list(await worker.registry.members()) == [replace(member("a"), load=MemberLoad(running=5))]


async def test_renewals_keep_the_lease_and_do_not_beat_in_step() -> None:
    worker = Worker()
    async with worker.presence:
        for _ in range(20):
            await worker.clock.advance(LONGEST_INTERVAL_S)
            assert len(await worker.registry.members()) == 1
    delays_s = worker.clock.delays_s
    assert all(2.4 <= delay_s <= LONGEST_INTERVAL_S for delay_s in delays_s)
    assert len(set(delays_s)) == len(delays_s)


async def test_draining_is_published_at_once() -> None:
    worker = Worker()
    async with worker.presence as presence:
        await settle()
        await presence.drain()
        assert [listed.draining for listed in await worker.registry.members()] == [True]


async def test_draining_while_the_store_is_away_is_published_later() -> None:
    worker = Worker()
    async with worker.presence as presence:
        await settle()
        worker.registry.is_reachable = False
        await presence.drain()
        worker.registry.is_reachable = True
        await worker.clock.advance(LONGEST_INTERVAL_S)
        assert [listed.draining for listed in await worker.registry.members()] == [True]


async def test_an_outage_is_survived_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    with caplog.at_level(logging.INFO):
        async with worker.presence as presence:
            await settle()
            worker.registry.is_reachable = False
            for _ in range(10):
                await worker.clock.advance(LONGEST_INTERVAL_S)
            assert not presence.is_joined
            worker.registry.is_reachable = True
            await worker.clock.advance(LONGEST_INTERVAL_S)
            assert presence.is_joined
            assert len(await worker.registry.members()) == 1
    assert _events(caplog) == [
        "member.joined",
        "registry.away",
        "member.lost",
        "member.joined",
        "registry.back",
        "member.left",
    ]


async def test_it_joins_when_the_store_comes_up_after_it() -> None:
    worker = Worker()
    worker.registry.is_reachable = False
    async with worker.presence as presence:
        await settle()
        with pytest.raises(DeadlineExceeded):
            await presence.wait_joined(0)
        worker.registry.is_reachable = True
        await worker.clock.advance(LONGEST_INTERVAL_S)
        assert presence.is_joined


async def test_it_joins_again_with_its_card_after_the_store_lost_its_data() -> None:
    worker = Worker()
    async with worker.presence:
        await settle()
        worker.registry.lose_data()
        await worker.clock.advance(LONGEST_INTERVAL_S)
        assert len(await worker.registry.members()) == 1
        assert await worker.registry.card(CARD.digest) == CARD


async def test_closing_while_the_store_is_away_does_not_fail() -> None:
    worker = Worker()
    async with worker.presence:
        await settle()
        worker.registry.is_reachable = False
    worker.registry.is_reachable = True
    assert len(await worker.registry.members()) == 1  # until its lease ends


async def test_a_closed_presence_does_not_come_back() -> None:
    worker = Worker()
    async with worker.presence as presence:
        await settle()
    await presence.drain()
    await presence.close()
    assert list(await worker.registry.members()) == []


async def test_a_load_that_fails_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> MemberLoad:
        raise ZeroDivisionError

    clock = SteppingClock()
    async with Presence(MemoryRegistry(clock), member("a"), CARD, load=broken, clock=clock):
        await settle()
    assert "background.failed" in _events(caplog)


def test_a_member_needs_its_own_card() -> None:
    clock = SteppingClock()
    with pytest.raises(InternalError):
        Presence(MemoryRegistry(clock), member("a"), other_card("other"), load=MemberLoad, clock=clock)
