"""The Lua operations of jobs alone: fences, positions, locks of threads."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import Conflict, JobEnded, LeaseLost, ObjectNotFound, ObjectRefused
from services.gateway.jobs.events import LogEntry
from services.gateway.jobs.operations import QUEUE, ClaimThread, RequireIdleThread, WriteJob
from services.gateway.jobs.storage import JobStorage, ProjectJobs
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create, Delete, Update
from services.gateway.store.kinds import MESSAGE, RUN, THREAD, Ref
from services.gateway.store.leases import ForgetLease, RenewLease, TakeLease
from services.gateway.store.object_store import ObjectStore

THREAD_REF, RUN_REF = THREAD.ref("thread_1"), RUN.ref("run_1")
EXPIRES_MS = 1000


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[ProjectJobs]:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        storage = JobStorage(ObjectStore(state), [RUN])
        await storage.register("team")
        jobs = storage.of("team")
        await jobs.objects.create(Create(THREAD_REF, {}))
        yield jobs
        await state.close()


async def due(jobs: ProjectJobs, now_ms: int) -> list[Ref]:
    """The runs of the project that any gateway may take."""
    return [run for _, run in await JobStorage(ObjectStore(jobs._state), [RUN]).due(now_ms, 10)]


def entry(number: int) -> LogEntry:
    return LogEntry(number, f"event {number}", b'{"n": %d}' % number, (number,))


def made(name: str = "run_1", *, may_wait: bool = False) -> list[Any]:
    run = RUN.ref(name)
    claim = ClaimThread(THREAD_REF, run, may_wait)
    return [claim, Create(run, {"n": 0}, THREAD_REF), WriteJob(run, 1, 0, 100, EXPIRES_MS, [entry(1)], retention_s=60)]


def write(fence: int, number: int, **changes: Any) -> WriteJob:
    return replace(WriteJob(RUN_REF, fence, 0, 100, EXPIRES_MS, [entry(number)], retention_s=60), **changes)


def end(name: str) -> WriteJob:
    return WriteJob(RUN.ref(name), 1, 0, None, EXPIRES_MS)


async def test_state_and_events_are_written_together_or_not_at_all(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    await jobs.objects.apply([write(1, 2, body={"n": 2}, version=1, private=b"p")])
    with pytest.raises(ObjectNotFound):
        await jobs.objects.apply([write(1, 3, body={"n": 3}, version=2), Update(MESSAGE.ref("none"), {})])

    record = await jobs.objects.get(RUN_REF, with_private=True)
    assert (record.body, record.version, record.private) == ({"n": 2}, 2, b"p")
    assert await jobs.read(RUN_REF, 0) == [entry(1), entry(2)]


@pytest.mark.parametrize("number", [1, 2, 4])
async def test_an_event_is_appended_once_and_in_its_place(jobs: ProjectJobs, number: int) -> None:
    await jobs.objects.apply(made())
    await jobs.objects.apply([write(1, 2)])
    with pytest.raises(Conflict):
        await jobs.objects.apply([write(1, number)])

    assert await jobs.read(RUN_REF, 0) == [entry(1), entry(2)]


async def test_who_lost_the_run_writes_nothing(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    [taken] = await jobs.objects.apply([TakeLease(QUEUE, RUN_REF, 100, 200)])
    assert taken.details["fence"] == 2
    for late in (write(1, 2), RenewLease(QUEUE, RUN_REF, 1, 100), write(1, 2, due_ms=None)):
        with pytest.raises(LeaseLost):
            await jobs.objects.apply([late])

    await jobs.objects.apply([write(2, 2)])
    assert await jobs.read(RUN_REF, 1) == [entry(2)]
    assert await due(jobs, 100) == [RUN_REF]


async def test_a_lease_keeps_others_away_until_it_ends(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    assert await due(jobs, 99) == []
    with pytest.raises(LeaseLost):
        await jobs.objects.apply([TakeLease(QUEUE, RUN_REF, 99, 200)])
    await jobs.objects.apply([RenewLease(QUEUE, RUN_REF, 1, 150)])
    with pytest.raises(LeaseLost):
        await jobs.objects.apply([TakeLease(QUEUE, RUN_REF, 149, 200)])

    [forced] = await jobs.objects.apply([TakeLease(QUEUE, RUN_REF, 149, 200, is_forced=True)])
    assert forced.details["fence"] == 2


async def test_a_version_that_a_client_changed_is_noticed(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    await jobs.objects.update(Update(RUN_REF, {"metadata": 1}, 1))
    with pytest.raises(Conflict):
        await jobs.objects.apply([write(1, 2, body={}, version=1)])
    await jobs.objects.apply([write(1, 2, body={}, version=2)])


async def test_a_thread_has_one_run_at_a_time(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    with pytest.raises(ObjectRefused, match=r"^Thread thread_1 already has an active run run_1\.$"):
        await jobs.objects.apply(made("run_2"))
    with pytest.raises(ObjectRefused, match=r"^Can't add messages to thread_1 while a run run_1 is active\.$"):
        await jobs.objects.apply([RequireIdleThread(THREAD_REF)])
    await jobs.objects.apply([write(1, 2, due_ms=None)])

    with pytest.raises(JobEnded):
        await jobs.objects.apply([TakeLease(QUEUE, RUN_REF, 1000, 2000, is_forced=True)])
    await jobs.objects.apply([RequireIdleThread(THREAD_REF)])
    await jobs.objects.apply(made("run_2"))


async def test_runs_wait_in_order_and_are_due_when_it_is_their_turn(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    for name in ("run_2", "run_3"):
        [claimed, *_] = await jobs.objects.apply(made(name, may_wait=True))
        assert claimed.details["waits"] is True
    assert await due(jobs, 999) == [RUN_REF]
    [ended] = await jobs.objects.apply([write(1, 2, due_ms=None)])

    assert ended.details["heir"] == "run:run_2"
    assert await due(jobs, 0) == [RUN.ref("run_2")]
    await jobs.objects.apply([end("run_3")])  # cancelled while it waits
    [last] = await jobs.objects.apply([end("run_2")])
    assert "heir" not in last.details
    await jobs.objects.apply([RequireIdleThread(THREAD_REF)])


async def test_a_run_that_waits_goes_on_waiting_when_it_is_taken(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    await jobs.objects.apply(made("run_2", may_wait=True))
    await jobs.objects.apply([TakeLease(QUEUE, RUN.ref("run_2"), 50, 150, is_forced=True)])
    assert await due(jobs, EXPIRES_MS - 1) == [RUN_REF]

    await jobs.objects.apply([write(1, 2, due_ms=None)])
    assert await due(jobs, 0) == [RUN.ref("run_2")]


async def test_a_deleted_thread_leaves_nothing_behind(jobs: ProjectJobs) -> None:
    await jobs.objects.apply(made())
    await jobs.objects.apply([ForgetLease(QUEUE, RUN_REF)])
    assert await due(jobs, 2000) == [RUN_REF]
    await jobs.objects.apply([Delete(THREAD_REF)])

    with pytest.raises(ObjectNotFound):
        await jobs.objects.apply([write(1, 2)])
    assert await jobs.state(RUN_REF) is None
    assert await jobs.read(RUN_REF, 0) == []
    await jobs.objects.apply([ForgetLease(QUEUE, RUN_REF)])
    assert await due(jobs, 2000) == []
