"""Suspects come back when they answer, not when time has passed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from services.cluster.registry import Member
from services.gateway.routing.probing import Probing
from services.gateway.routing.suspects import Suspects
from services.telemetry.clock import ManualClock
from tests.gateway.twins import DecodeTwin, member

PAUSE_S = 2.0


@dataclass
class World:
    listed: Sequence[Member]
    clock: ManualClock = field(default_factory=ManualClock)
    workers: DecodeTwin = field(default_factory=DecodeTwin)

    def __post_init__(self) -> None:
        self.suspects = Suspects(self.clock, PAUSE_S)
        self.probing = Probing(self.suspects, self, self.workers, self.clock, pause_s=PAUSE_S)

    def members(self) -> Sequence[Member]:
        return self.listed


@pytest.fixture
def world() -> World:
    world = World([member("d1"), member("d2")])
    world.suspects.mark("d1")
    return world


async def test_a_suspect_is_left_alone_for_a_while(world: World) -> None:
    await world.probing.ask()
    assert world.workers.probed == []
    assert world.suspects.now() == {"d1"}


async def test_who_answers_is_trusted_again(world: World) -> None:
    world.clock.advance(PAUSE_S)
    await world.probing.ask()
    assert world.workers.probed == ["d1:1"]
    assert world.suspects.now() == frozenset()


async def test_who_is_silent_stays_suspect_and_is_asked_again(world: World) -> None:
    world.workers.silent = {"d1:1"}
    for _ in range(3):
        world.clock.advance(PAUSE_S)
        await world.probing.ask()
        await world.probing.ask()
    assert world.workers.probed == ["d1:1"] * 3
    assert world.suspects.now() == {"d1"}


async def test_who_is_gone_is_forgotten(world: World) -> None:
    world.listed = [member("d2")]
    await world.probing.ask()
    assert world.suspects.now() == frozenset()
    assert world.workers.probed == []
