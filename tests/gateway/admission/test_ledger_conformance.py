"""What every share ledger does, the in-memory one and the one in a real Redis."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import StateUnavailable
from services.gateway.admission.ledger import Ask, Grant, MemoryShareLedger, ShareLedger
from services.gateway.admission.redis_ledger import RedisShareLedger
from services.gateway.redis_state import RedisState
from services.telemetry.clock import ManualClock


@dataclass
class Harness:
    ledger: ShareLedger
    lapse: Callable[[], Awaitable[None]]
    """Ends every lease."""

    async def share(self, holder: str, *, total: int = 100, in_use: int = 0, wanted: int = 0) -> int:
        return (await self.grant(holder, total=total, in_use=in_use, wanted=wanted)).share

    async def grant(self, holder: str, *, total: int = 100, in_use: int = 0, wanted: int = 0) -> Grant:
        return (await self.ledger.exchange(holder, {"tokens": Ask(total, in_use, wanted)}))["tokens"]


@pytest.fixture(params=["memory", "redis"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    if request.param == "memory":
        clock = ManualClock()

        async def lapse() -> None:
            clock.advance(10.0)

        yield Harness(MemoryShareLedger(clock), lapse)
        return
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)

        async def age() -> None:
            async with state.reaching() as client:
                for holder, text in (await client.hgetall("tandem:shares:tokens")).items():
                    held, wanted, _ = (text if isinstance(text, str) else text.decode()).split()
                    await client.hset("tandem:shares:tokens", holder, f"{held} {wanted} 1")

        yield Harness(RedisShareLedger(state), age)
        await state.close()


async def test_one_gateway_alone_has_everything_whatever_it_wants(harness: Harness) -> None:
    assert await harness.grant("a") == Grant(100, 1)
    assert await harness.grant("a", in_use=30, wanted=100) == Grant(100, 1)


async def test_a_share_is_not_lent_twice(harness: Harness) -> None:
    assert await harness.share("a") == 100
    assert await harness.grant("b", wanted=10) == Grant(0, 2)
    assert await harness.share("a") == 45  # b's are what b wants and half of the rest
    assert await harness.share("b", wanted=10) == 55


async def test_what_nobody_wants_is_split_evenly(harness: Harness) -> None:
    for _ in range(2):
        shares = [await harness.share(holder) for holder in "abcd"]
    assert shares == [25, 25, 25, 25]


async def test_who_wants_more_than_his_part_gets_what_others_leave(harness: Harness) -> None:
    for _ in range(2):
        shares = {
            "a": await harness.share("a", in_use=20, wanted=100),
            "b": await harness.share("b", wanted=10),
            "c": await harness.share("c", wanted=100),
        }
    assert shares == {"a": 45, "b": 10, "c": 45}


async def test_what_is_in_use_is_not_lent_to_others(harness: Harness) -> None:
    await harness.share("a", in_use=90, wanted=100)
    await harness.share("b", wanted=100)
    assert await harness.share("a", in_use=90, wanted=100) == 50  # nothing new until 40 have ended
    assert await harness.share("b", wanted=100) == 10
    assert await harness.share("a", in_use=50, wanted=100) == 50
    assert await harness.share("b", in_use=10, wanted=100) == 50


async def test_the_share_of_a_dead_gateway_comes_back(harness: Harness) -> None:
    await harness.share("a", in_use=100, wanted=100)
    assert await harness.share("b", wanted=100) == 0
    await harness.lapse()
    assert await harness.grant("b", wanted=100) == Grant(100, 1)


async def test_who_leaves_gives_back_at_once(harness: Harness) -> None:
    await harness.share("a", in_use=100, wanted=100)
    await harness.ledger.leave("a", ["tokens", "unknown"])
    assert await harness.grant("b") == Grant(100, 1)


async def test_limits_are_kept_apart(harness: Harness) -> None:
    asks = {"tokens": Ask(100, 0, 0), "tokens:a:b c": Ask(7, 0, 0)}
    assert await harness.ledger.exchange("a", asks) == {"tokens": Grant(100, 1), "tokens:a:b c": Grant(7, 1)}
    assert await harness.share("b", wanted=1) == 0


async def test_a_limit_that_changed_holds_at_once(harness: Harness) -> None:
    assert await harness.share("a", total=100, in_use=60, wanted=60) == 100
    assert await harness.share("a", total=50, in_use=60, wanted=60) == 50
    assert await harness.share("b", total=50, wanted=10) == 0
    assert await harness.share("a", total=200, in_use=60, wanted=60) == 125
    assert await harness.share("b", total=200, wanted=10) == 75


async def test_odd_parts_never_make_more_than_the_whole(harness: Harness) -> None:
    for _ in range(2):
        shares = [await harness.share(holder, total=8, wanted=8) for holder in "abc"]
    assert sorted(shares) == [2, 3, 3]


async def test_large_limits_are_exact(harness: Harness) -> None:
    total = 2**53 - 1
    assert await harness.share("a", total=total, in_use=12_345_678_901, wanted=total) == total


async def test_a_redis_that_is_away_is_named_as_such(tmp_path: Path) -> None:
    away = RedisState(f"unix://{tmp_path}/none.sock", 1.0)
    ledger = RedisShareLedger(away)
    with pytest.raises(StateUnavailable):
        await ledger.exchange("a", {"tokens": Ask(1, 0, 0)})
    with pytest.raises(StateUnavailable):
        await ledger.leave("a", ["tokens"])
    await away.close()


async def test_leases_expire_in_redis(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        await RedisShareLedger(state, lease_s=900.0).exchange("a", {"tokens": Ask(100, 0, 0)})
        async with state.reaching() as client:
            assert 800_000 < await client.pttl("tandem:shares:tokens") <= 900_000
        await state.close()
