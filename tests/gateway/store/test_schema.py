"""The version of the layout of keys: told once, checked by everybody, brought up to date by one gateway at a time."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from services.errors import ConfigurationError, DeadlineExceeded, StateUnavailable
from services.gateway.redis_state import RedisState
from services.gateway.store.schema import SCHEMA_VERSION, Migration, Schema
from services.telemetry.clock import ManualClock

LEASE = "{tandem:schema}:lease"


async def get(state: RedisState, key: str = "tandem:schema") -> bytes | None:
    async with state.reaching() as client:
        value: Any = await client.get(key)
    return value if isinstance(value, bytes | None) else None


async def put(state: RedisState, value: str, key: str = "tandem:schema") -> None:
    async with state.reaching() as client:
        await client.set(key, value)


def schema(state: RedisState, version: int = 3, migrations: Mapping[int, Migration] | None = None) -> Schema:
    return Schema(state, ManualClock(), version=version, migrations=migrations or {})


def counting(made: list[int]) -> dict[int, Migration]:
    """Migrations from 1 to 3 that note what they make."""

    async def first(state: RedisState) -> None:
        made.append(2)

    async def second(state: RedisState) -> None:
        made.append(3)

    return {1: first, 2: second}


async def test_a_new_redis_has_the_present_version(state: RedisState) -> None:
    await Schema(state, ManualClock()).prepare()
    await Schema(state, ManualClock()).require()

    assert await get(state) == str(SCHEMA_VERSION).encode()


async def test_an_older_redis_is_migrated_step_by_step_and_once(state: RedisState) -> None:
    made: list[int] = []
    await put(state, "1")
    for _ in range(2):
        await schema(state, 3, counting(made)).prepare()

    assert made == [2, 3]
    assert (await get(state), await get(state, LEASE)) == (b"3", None)


async def test_of_many_gateways_one_migrates(state: RedisState) -> None:
    made: list[int] = []
    await put(state, "1")
    await asyncio.gather(*(schema(state, 3, counting(made)).prepare() for _ in range(8)))

    assert made == [2, 3]


async def test_a_step_that_failed_is_made_by_the_next_gateway(state: RedisState) -> None:
    made: list[int] = []
    await put(state, "1")

    async def broken(state: RedisState) -> None:
        made.append(0)
        raise StateUnavailable("away")

    with pytest.raises(StateUnavailable):
        await schema(state, 3, {**counting(made), 2: broken}).prepare()
    assert (made, await get(state), await get(state, LEASE)) == ([2, 0], b"2", None)
    await schema(state, 3, counting(made)).prepare()

    assert (made, await get(state)) == ([2, 0, 3], b"3")


async def test_who_loses_the_lease_stops_and_leaves_it_to_the_other(state: RedisState) -> None:
    made: list[str] = []
    await put(state, "1")

    async def slow(state: RedisState) -> None:
        await put(state, "another", LEASE)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            made.append("stopped")
            await put(state, "2")
            raise

    await schema(state, 2, {1: slow}).prepare()

    assert made == ["stopped"]
    assert await get(state, LEASE) == b"another"


async def test_a_gateway_does_not_wait_for_another_one_for_ever(state: RedisState) -> None:
    await put(state, "1")
    await put(state, "another", LEASE)

    with pytest.raises(DeadlineExceeded, match="from version 1 to 2, for more than 600 s"):
        await schema(state, 2, {}).prepare()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("4", "version 4 and this Tandem knows 3 at most: a newer one has used this Redis"),
        ("1", "version 1, and this Tandem, which has 3, cannot bring them up to date"),
        ("x", "holds 'x' instead of a version"),
    ],
)
async def test_a_redis_that_does_not_fit_is_refused_with_a_sentence(
    state: RedisState, found: str, message: str
) -> None:
    await put(state, found)

    with pytest.raises(ConfigurationError, match=message):
        await schema(state).prepare()
    assert (await get(state), await get(state, LEASE)) == (found.encode(), None)


async def test_commands_leave_migrations_to_gateways(state: RedisState) -> None:
    await put(state, "2")

    with pytest.raises(ConfigurationError, match="start one of its gateways first"):
        await schema(state).require()


class Away(RedisState):
    """A Redis that can be reached once a test says so."""

    def __init__(self, state: RedisState) -> None:
        self._real = state
        self.is_back = False

    def reaching(self, *, waits: bool = False) -> Any:
        if not self.is_back:
            raise StateUnavailable("away")
        return self._real.reaching(waits=waits)


async def test_while_redis_is_away_the_body_runs_and_ends_when_it_does_not_fit(state: RedisState) -> None:
    away = Away(state)
    await put(state, "4")

    with pytest.raises(ConfigurationError, match="version 4"):
        async with schema(away).prepared():
            await asyncio.sleep(0)
            away.is_back = True
            await asyncio.Event().wait()


async def test_while_redis_is_away_the_body_may_end(state: RedisState) -> None:
    async with schema(Away(state)).prepared():
        await asyncio.sleep(0)

    assert await get(state) is None
