"""What of a thread is read for a run."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import RedisState
from services.gateway.runs.history import read_history
from services.gateway.store.changes import Create
from services.gateway.store.kinds import MESSAGE, RUN, THREAD
from services.gateway.store.object_store import Objects, ObjectStore

THREAD_REF, RUN_REF = THREAD.ref("thread_1"), RUN.ref("run_1")


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[Objects]:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        yield ObjectStore(state).of("team")
        await state.close()


async def test_many_short_messages_are_not_read_to_their_beginning(objects: Objects) -> None:
    content = [{"type": "text", "text": {"value": "ok", "annotations": []}}]
    body = {"role": "user", "run_id": None, "content": content}
    messages = [Create(MESSAGE.ref(f"msg_{number}"), body, THREAD_REF) for number in range(300)]
    await objects.apply([Create(THREAD_REF, {}), Create(RUN_REF, {}, THREAD_REF), *messages])

    entries = await read_history(objects, RUN_REF, THREAD_REF, max_characters=4000)
    assert [entry.message_id for entry in entries] == [f"msg_{number}" for number in range(100, 300)]
