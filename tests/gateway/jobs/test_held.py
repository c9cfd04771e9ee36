"""Changes of a held job whose answers are lost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import StateUnavailable
from services.gateway.jobs.events import numbered
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.held import HeldJob, LeaseTerms, Writing
from services.gateway.jobs.operations import WriteJob
from services.gateway.jobs.storage import JobStorage, ProjectJobs
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import MESSAGE, RUN, THREAD
from services.gateway.store.object_store import Done, Objects, ObjectStore
from services.gateway.store.records import Query
from services.telemetry.clock import ManualClock

THREAD_REF, RUN_REF, MESSAGE_REF = THREAD.ref("thread_1"), RUN.ref("run_1"), MESSAGE.ref("msg_1")
BODY = {"status": "queued", "metadata": {}}


async def held_job(jobs: ProjectJobs) -> HeldJob:
    clock = ManualClock()
    terms = LeaseTerms(clock, 10.0, 60.0)
    expires_ms = terms.now_ms + 600_000
    write = WriteJob(RUN_REF, 1, terms.now_ms, expires_ms, expires_ms, numbered([], 1), retention_s=60)
    [_, made, _] = await jobs.objects.apply([Create(THREAD_REF, {}), Create(RUN_REF, BODY, THREAD_REF), write])
    return HeldJob(jobs, terms, Feed(), RUN_REF, BODY, None, 1, 0, expires_ms, {RUN_REF: made.version or 0})


async def test_a_change_without_events_is_made_once_if_its_answer_is_lost_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, tokens = Objects.apply, list[str]()

    async def loses_answer(self: Objects, operations: Sequence[Operation], **options: Any) -> Sequence[Done]:
        tokens.append(options["token"])
        if len(tokens) > 1:
            return await apply(self, operations, **options)
        await apply(self, operations, **{**options, "token": "forgotten meanwhile"})
        raise StateUnavailable("Redis went away.")

    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        jobs = JobStorage(ObjectStore(state), [RUN]).of("team")
        held = await held_job(jobs)
        monkeypatch.setattr("services.gateway.jobs.held._PAUSE_S", 0.0)
        monkeypatch.setattr(Objects, "apply", loses_answer)
        await held.commit(Writing(private=b"p", further=[Create(MESSAGE_REF, {"n": 1}, THREAD_REF)]))
        listed = await jobs.objects.list(Query(MESSAGE, THREAD_REF))
        kept = await jobs.objects.get(RUN_REF, with_private=True)
        await state.close()

    assert [record.ref for record in listed.records] == [MESSAGE_REF]
    assert held.private == kept.private == b"p"
    assert len(tokens) == 2
