"""A sweep takes what it can read; what it cannot stops nobody else."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.drain import Drain
from services.gateway.jobs.events import LogEntry
from services.gateway.jobs.execution import Ending, JobKind
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.held import HeldJob, LeaseTerms, Writing
from services.gateway.jobs.operations import WriteJob
from services.gateway.jobs.service import Jobs, JobServices
from services.gateway.jobs.storage import MAX_LOOKED, JobStorage
from services.gateway.jobs.sweeper import Sweeper
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create
from services.gateway.store.kinds import RESPONSE, RUN, Ref
from services.gateway.store.object_store import ObjectStore
from services.telemetry.clock import ManualClock

UNREADABLE, READABLE, UNKNOWN = RUN.ref("run_1"), RUN.ref("run_2"), RESPONSE.ref("resp_1")
LEASE_S = 10.0


@dataclass
class CountedWork:
    """Work that is over at once."""

    held: HeldJob

    async def resume(self) -> None: ...

    async def advance(self) -> None:
        await self.held.commit(Writing(body={"status": "completed", "metadata": {}}))

    async def end(self, ending: Ending, *, is_patient: bool = True) -> None: ...


@dataclass
class Swept:
    """A gateway that knows runs only, and what it took."""

    storage: JobStorage
    clock: ManualClock
    taken: list[Ref] = field(default_factory=list)

    def sweeper(self, work: Callable[[HeldJob], CountedWork]) -> tuple[Jobs, Sweeper]:
        terms = LeaseTerms(self.clock, LEASE_S, 60.0)
        services = JobServices(self.storage, Feed(), terms, [JobKind(RUN, work)], 60.0, lambda: None)
        jobs = Jobs(services)
        return jobs, Sweeper(jobs, self.storage, terms, Drain(self.clock), Random(0))

    def work(self, held: HeldJob) -> CountedWork:
        """Note what is taken; one job cannot be read."""
        self.taken.append(held.ref)
        if held.ref == UNREADABLE:
            raise TypeError("unexpected keyword argument")
        return CountedWork(held)


@pytest.fixture
async def swept(tmp_path: Path) -> AsyncIterator[Swept]:
    """Three jobs that any gateway may take, those that cannot be read first."""
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        storage, clock = JobStorage(ObjectStore(state), [RUN]), ManualClock()
        await storage.register("team")
        due_ms = round(1e3 * clock.wall()) - 3
        for place, ref in enumerate((UNKNOWN, UNREADABLE, READABLE)):
            write = WriteJob(ref, 1, 0, due_ms + place, due_ms + 600_000, [LogEntry(1, "e", b"{}")], retention_s=60)
            await storage.of("team").objects.apply([Create(ref, {"status": "queued", "metadata": {}}), write])
        yield Swept(storage, clock)
        await state.close()


async def test_a_job_that_cannot_be_read_does_not_stop_the_others(
    swept: Swept, caplog: pytest.LogCaptureFixture
) -> None:
    jobs, sweeper = swept.sweeper(swept.work)
    await sweeper.sweep()
    await sweeper.sweep()  # the lease of the one that was not read holds
    first = list(swept.taken)
    swept.clock.advance(LEASE_S + 1)
    await sweeper.sweep()
    await jobs.close()

    assert first[:2] == [UNREADABLE, READABLE]
    assert first.count(UNREADABLE) == 1
    assert swept.taken.count(UNREADABLE) == 2
    defects = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in defects] == ["job.unreadable"] * 2


async def test_jobs_of_kinds_that_are_not_known_here_hide_none_behind_them(swept: Swept) -> None:
    jobs, sweeper = swept.sweeper(swept.work)
    objects, now_ms = swept.storage.of("team").objects, round(1e3 * swept.clock.wall())
    for place in range(MAX_LOOKED):
        ref = RESPONSE.ref(f"resp_old_{place}")
        write = WriteJob(ref, 1, 0, now_ms - 1000, now_ms, [LogEntry(1, "e", b"{}")], retention_s=60)
        await objects.apply([Create(ref, {}), write])

    await sweeper.sweep()
    first = list(swept.taken)
    await sweeper.sweep()
    await jobs.close()

    assert (first, swept.taken) == ([], [UNREADABLE, READABLE])


async def test_a_look_begins_where_the_last_one_found_enough(swept: Swept) -> None:
    now_ms = round(1e3 * swept.clock.wall())
    looks = [[job for _, job in await swept.storage.due(now_ms, limit)] for limit in (1, 9, 9)]

    assert looks == [[UNREADABLE], [UNREADABLE, READABLE], [UNREADABLE, READABLE]]


async def test_a_job_of_a_kind_that_is_not_known_here_is_left_to_others(swept: Swept) -> None:
    due = await swept.storage.due(round(1e3 * swept.clock.wall()), 10)

    assert [job for _, job in due] == [UNREADABLE, READABLE]
