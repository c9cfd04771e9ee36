"""The Lua operations of runs alone: fences, positions, locks of threads."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import Conflict, LeaseLost, ObjectNotFound, ObjectRefused, RunEnded
from services.gateway.redis_state import RedisState
from services.gateway.runs.events import LogEntry
from services.gateway.runs.operations import ClaimThread, ForgetRun, Lease, RequireIdleThread, TakeRun, WriteRun
from services.gateway.runs.storage import ProjectRuns, RunStorage
from services.gateway.store.changes import Create, Delete, Update
from services.gateway.store.kinds import MESSAGE, RUN, THREAD, Ref
from services.gateway.store.object_store import ObjectStore

THREAD_REF, RUN_REF = THREAD.ref("thread_1"), RUN.ref("run_1")
HELD = Lease("a", 0, 100, 1000)
ENDED = Lease("", 0, None, 1000)


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[ProjectRuns]:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        storage = RunStorage(ObjectStore(state))
        await storage.register("team")
        runs = storage.of("team")
        await runs.objects.create(Create(THREAD_REF, {}))
        yield runs
        await state.close()


async def due(runs: ProjectRuns, now_ms: int) -> list[Ref]:
    """The runs of the project that any gateway may take."""
    return [run for _, run in await RunStorage(ObjectStore(runs._state)).due(now_ms, 10)]


def entry(number: int) -> LogEntry:
    return LogEntry(number, f"event {number}", b'{"n": %d}' % number, (number,))


def made(name: str = "run_1", *, may_wait: bool = False) -> list[Any]:
    run = RUN.ref(name)
    claim = ClaimThread(THREAD_REF, run, may_wait)
    return [claim, Create(run, {"n": 0}, THREAD_REF), WriteRun(run, 1, HELD, [entry(1)], retention_s=60)]


def write(fence: int, number: int, **changes: Any) -> WriteRun:
    return replace(WriteRun(RUN_REF, fence, HELD, [entry(number)], retention_s=60), **changes)


async def test_state_and_events_are_written_together_or_not_at_all(runs: ProjectRuns) -> None:
    await runs.objects.apply(made())
    await runs.objects.apply([write(1, 2, body={"n": 2}, version=1, private=b"p")])
    with pytest.raises(ObjectNotFound):
        await runs.objects.apply([write(1, 3, body={"n": 3}, version=2), Update(MESSAGE.ref("none"), {})])

    record = await runs.objects.get(RUN_REF, with_private=True)
    assert (record.body, record.version, record.private) == ({"n": 2}, 2, b"p")
    assert await runs.read(RUN_REF, 0) == [entry(1), entry(2)]


@pytest.mark.parametrize("number", [1, 2, 4])
async def test_an_event_is_appended_once_and_in_its_place(runs: ProjectRuns, number: int) -> None:
    await runs.objects.apply(made())
    await runs.objects.apply([write(1, 2)])
    with pytest.raises(Conflict):
        await runs.objects.apply([write(1, number)])

    assert await runs.read(RUN_REF, 0) == [entry(1), entry(2)]


async def test_who_lost_the_run_writes_nothing(runs: ProjectRuns) -> None:
    await runs.objects.apply(made())
    [taken] = await runs.objects.apply([TakeRun(RUN_REF, "b", 100, 200)])
    assert taken.details["fence"] == 2
    for late in (write(1, 2), WriteRun(RUN_REF, 1, HELD), write(1, 2, lease=ENDED)):
        with pytest.raises(LeaseLost):
            await runs.objects.apply([late])

    await runs.objects.apply([write(2, 2)])
    assert await runs.read(RUN_REF, 1) == [entry(2)]
    assert await due(runs, 100) == [RUN_REF]


async def test_a_lease_keeps_others_away_until_it_ends(runs: ProjectRuns) -> None:
    await runs.objects.apply(made())
    assert await due(runs, 99) == []
    with pytest.raises(LeaseLost):
        await runs.objects.apply([TakeRun(RUN_REF, "b", 99, 200)])
    await runs.objects.apply([WriteRun(RUN_REF, 1, Lease("a", 50, 150, 1000))])
    with pytest.raises(LeaseLost):
        await runs.objects.apply([TakeRun(RUN_REF, "b", 149, 200)])

    [forced] = await runs.objects.apply([TakeRun(RUN_REF, "b", 149, 200, is_forced=True)])
    assert forced.details["fence"] == 2


async def test_a_version_that_a_client_changed_is_noticed(runs: ProjectRuns) -> None:
    await runs.objects.apply(made())
    await runs.objects.update(Update(RUN_REF, {"metadata": 1}, 1))
    with pytest.raises(Conflict):
        await runs.objects.apply([write(1, 2, body={}, version=1)])
    await runs.objects.apply([write(1, 2, body={}, version=2)])


async def test_a_thread_has_one_run_at_a_time(runs: ProjectRuns) -> None:
    await runs.objects.apply(made())
    with pytest.raises(ObjectRefused, match=r"^Thread thread_1 already has an active run run_1\.$"):
        await runs.objects.apply(made("run_2"))
    with pytest.raises(ObjectRefused, match=r"^Can't add messages to thread_1 while a run run_1 is active\.$"):
        await runs.objects.apply([RequireIdleThread(THREAD_REF)])
    await runs.objects.apply([write(1, 2, lease=ENDED)])

    with pytest.raises(RunEnded):
        await runs.objects.apply([TakeRun(RUN_REF, "b", 1000, 2000, is_forced=True)])
    await runs.objects.apply([RequireIdleThread(THREAD_REF)])
    await runs.objects.apply(made("run_2"))


async def test_runs_wait_in_order_and_are_due_when_it_is_their_turn(runs: ProjectRuns) -> None:
    await runs.objects.apply(made())
    for name in ("run_2", "run_3"):
        [claimed, *_] = await runs.objects.apply(made(name, may_wait=True))
        assert claimed.details["waits"] is True
    assert await due(runs, 999) == [RUN_REF]
    [ended] = await runs.objects.apply([write(1, 2, lease=ENDED)])

    assert ended.details["heir"] == "run_2"
    assert await due(runs, 0) == [RUN.ref("run_2")]
    await runs.objects.apply([WriteRun(RUN.ref("run_3"), 1, ENDED)])  # cancelled while it waits
    [last] = await runs.objects.apply([WriteRun(RUN.ref("run_2"), 1, ENDED)])
    assert "heir" not in last.details
    await runs.objects.apply([RequireIdleThread(THREAD_REF)])


async def test_a_deleted_thread_leaves_nothing_behind(runs: ProjectRuns) -> None:
    await runs.objects.apply(made())
    await runs.objects.apply([ForgetRun(RUN_REF)])
    assert await due(runs, 2000) == [RUN_REF]
    await runs.objects.apply([Delete(THREAD_REF)])

    with pytest.raises(ObjectNotFound):
        await runs.objects.apply([write(1, 2)])
    assert await runs.log_state(RUN_REF) is None
    assert await runs.read(RUN_REF, 0) == []
    await runs.objects.apply([ForgetRun(RUN_REF)])
    assert await due(runs, 2000) == []
