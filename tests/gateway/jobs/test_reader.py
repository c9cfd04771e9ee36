"""Reading a log that is longer than one page of it."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.jobs.events import LogEntry
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.operations import WriteJob
from services.gateway.jobs.reader import EventReader
from services.gateway.jobs.storage import JobStorage
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create
from services.gateway.store.kinds import RUN
from services.gateway.store.object_store import ObjectStore

RUN_REF = RUN.ref("run_1")
DEADLINE_S, NEVER_S = 30.0, 3600.0


async def test_a_long_backlog_is_read_on_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("reader", "storage"):
        monkeypatch.setattr(f"services.gateway.jobs.{module}.MAX_READ", 2)
    entries = [LogEntry(number, "e", b"{}") for number in range(1, 6)]
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        storage = JobStorage(ObjectStore(state), [RUN])
        write = WriteJob(RUN_REF, 1, 0, 100, 1000, entries, retention_s=60)
        await storage.of("team").objects.apply([Create(RUN_REF, {"status": "in_progress"}), write])
        reader = EventReader(storage, Feed(), lambda key: True, wait_s=NEVER_S)
        found: list[int] = []
        async with (
            asyncio.timeout(DEADLINE_S),
            aclosing(reader.events(("team", RUN_REF), 0, stops_at_pause=True)) as log,
        ):
            async for entry in log:
                found.append(entry.number)
                if len(found) == len(entries):
                    break
        await state.close()

    assert found == [1, 2, 3, 4, 5]
