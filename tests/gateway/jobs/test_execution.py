"""How long a job waits for workers: as long as it lives for busy ones, some time for those that fail."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import Overloaded, PeerGone, TandemError, Unavailable
from services.gateway.jobs.events import numbered
from services.gateway.jobs.execution import Ending, Execution, Expired, Failed
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.held import HeldJob, LeaseTerms, Writing
from services.gateway.jobs.operations import WriteJob
from services.gateway.jobs.storage import JobStorage
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create
from services.gateway.store.kinds import RUN
from services.gateway.store.object_store import ObjectStore
from services.telemetry.clock import ManualClock

RUN_REF = RUN.ref("run_1")
EXPIRY_S, PATIENCE_S = 600.0, 60.0
BODY = {"status": "queued", "metadata": {}}


@dataclass
class FailingWork:
    """Work for which there is no worker, for one reason after the other."""

    held: HeldJob
    errors: Sequence[TandemError]
    endings: list[Ending] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reasons = cycle(self.errors)

    async def resume(self) -> None: ...

    async def advance(self) -> None:
        raise next(self._reasons)

    async def end(self, ending: Ending, *, is_patient: bool = True) -> None:
        self.endings.append(ending)
        status = "expired" if isinstance(ending, Expired) else "failed"
        await self.held.commit(Writing(body={**BODY, "status": status}))


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[HeldJob]:
    clock = ManualClock()
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        jobs = JobStorage(ObjectStore(state), [RUN]).of("team")
        terms = LeaseTerms(clock, 10.0, 60.0)
        expires_ms = terms.now_ms + round(1e3 * EXPIRY_S)
        write = WriteJob(RUN_REF, 1, terms.now_ms, expires_ms, expires_ms, numbered([], 1), retention_s=60)
        [made, _] = await jobs.objects.apply([Create(RUN_REF, BODY), write])
        yield HeldJob(jobs, terms, Feed(), RUN_REF, BODY, None, 1, 0, expires_ms, {RUN_REF: made.version or 0})
        await state.close()


@pytest.mark.parametrize(
    ("errors", "ending"),
    [
        ([Overloaded("busy")], Expired),
        ([PeerGone("reset"), Overloaded("busy")], Expired),
        ([PeerGone("reset")], Failed),
        ([Unavailable("gone")], Failed),
    ],
)
async def test_only_workers_that_fail_are_waited_for_no_longer_than_patience(
    held: HeldJob, errors: Sequence[TandemError], ending: type[Ending]
) -> None:
    work = FailingWork(held, errors)
    began_s = held.terms.clock.now()
    await Execution(work, held.terms.clock, PATIENCE_S).run()
    waited_s = held.terms.clock.now() - began_s

    assert [type(each) for each in work.endings] == [ending]
    assert (waited_s >= EXPIRY_S) == (ending is Expired)
    assert waited_s >= PATIENCE_S
