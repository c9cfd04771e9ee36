"""What clients see when their project may keep no more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import RedisState
from services.gateway.store.object_store import ObjectStore
from services.gateway.store.quota import Quota
from tests.gateway.apis.stored import refusal
from tests.gateway.runs.client import Caller
from tests.gateway.twins import World, world


@asynccontextmanager
async def bounded(folder: Path, quota: Quota) -> AsyncIterator[World]:
    async with EmbeddedRedis(folder) as server:
        state = RedisState(server.url, 30.0)
        try:
            async with world(objects=ObjectStore(state, quota)) as w:
                yield w
        finally:
            await state.close()


async def test_a_full_project_is_told_so_and_its_runs_end_nevertheless(tmp_path: Path) -> None:
    async with bounded(tmp_path, Quota(max_objects=4)) as w:
        caller = Caller(w)
        assistant, thread = await caller.assistant(), await caller.thread("hello")  # with a message
        run = await caller.run(thread, assistant)
        ended = await caller.settled(thread, run["id"])
        refused = [
            refusal(await w.post(path, body))
            for path, body in (
                ("/v1/threads", {}),
                (f"/v1/threads/{thread}/messages", {"role": "user", "content": "more"}),
                (f"/v1/threads/{thread}/runs", {"assistant_id": assistant}),
            )
        ]
        texts = await caller.texts(thread)
        await w.client.delete(f"/v1/threads/{thread}")
        await caller.thread("again")

    message = (
        "The project has 6 stored objects and may have 4: this would be more. Delete what is not needed, or have "
        "`max_project_objects` raised."
    )
    expected = {"message": message, "type": "invalid_request_error", "param": None, "code": "quota_exceeded"}
    assert ended["status"] == "completed"
    assert texts == [("user", "hello"), ("assistant", "Paris")]
    assert refused == [(403, expected)] * 3


async def test_a_file_beyond_the_quota_leaves_no_bytes(tmp_path: Path) -> None:
    async with bounded(tmp_path, Quota(max_file_bytes=10)) as w:
        sent = [
            await w.client.post("/v1/files", files={"file": ("a.txt", data)}, data={"purpose": "assistants"})
            for data in (b"123456", b"12345", b"1234")
        ]
        async with w.gateway.files.storage.of("default").state.reaching() as client:
            staged = await client.keys("*staged:*")

    assert [response.status_code for response in sent] == [200, 403, 200]
    assert refusal(sent[1])[1]["code"] == "quota_exceeded"
    assert staged == []
