"""Vector stores that are made together with assistants and threads."""

from typing import Any

import pytest

from services.errors import Overloaded
from services.gateway.answering.answers import Answers
from tests.gateway.apis.stored import refusal
from tests.gateway.search.searching import SMALL, Library
from tests.gateway.twins import MODEL


def asking(*file_ids: str, **fields: Any) -> dict[str, Any]:
    wanted = {"file_ids": list(file_ids), "chunking_strategy": SMALL, "metadata": {"a": "b"}, **fields}
    return {"tool_resources": {"file_search": {"vector_stores": [wanted]}}}


@pytest.mark.parametrize("path", ["/v1/assistants", "/v1/threads"])
async def test_a_store_is_made_with_the_object_that_uses_it(lib: Library, path: str) -> None:
    body = {"model": "m"} if path == "/v1/assistants" else {}
    made = await lib.post(path, {**body, **asking(await lib.file("some text"))})
    [store_id] = made["tool_resources"]["file_search"]["vector_store_ids"]
    await lib.ingest()
    store = await lib.get(f"/v1/vector_stores/{store_id}")

    assert made["tool_resources"] == {"file_search": {"vector_store_ids": [store_id]}}
    assert (store["file_counts"]["completed"], store["metadata"]) == (1, {"a": "b"})
    [file] = (await lib.get(f"/v1/vector_stores/{store_id}/files"))["data"]
    assert file["chunking_strategy"] == SMALL

    changed = await lib.post(f"{path}/{made['id']}", asking())
    assert changed["tool_resources"]["file_search"]["vector_store_ids"] != [store_id]


@pytest.mark.parametrize("path", ["/v1/assistants", "/v1/threads"])
async def test_nothing_is_made_of_what_is_refused(lib: Library, path: str) -> None:
    body = {"model": "m"} if path == "/v1/assistants" else {}
    absent = refusal(await lib.w.post(path, {**body, **asking("file-x")}))
    both = asking()
    both["tool_resources"]["file_search"]["vector_store_ids"] = ["vs_1"]
    twice = refusal(await lib.w.post(path, {**body, **both}))
    prefix = "asst" if path == "/v1/assistants" else "thread"
    nowhere = refusal(await lib.w.post(f"{path}/{prefix}_x", asking()))

    assert (absent[0], absent[1]["message"]) == (404, "No such File object: file-x")
    assert (twice[0], twice[1]["param"]) == (400, "tool_resources.file_search.vector_stores")
    assert nowhere[0] == 404
    assert (await lib.get("/v1/vector_stores"))["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"assistant_id": "asst_x", "thread": asking()},
        {"assistant_id": "asst_x", **asking()},
        {"assistant_id": "mine", "model": "nobody", "thread": asking()},
    ],
)
async def test_a_run_that_cannot_begin_leaves_no_store(lib: Library, body: dict[str, Any]) -> None:
    assistant = await lib.post("/v1/assistants", {"model": MODEL})
    named = {**body, "assistant_id": body["assistant_id"].replace("mine", assistant["id"])}
    refused = await lib.w.post("/v1/threads/runs", named)

    assert refusal(refused)[0] == 404
    assert (await lib.get("/v1/vector_stores"))["data"] == []


async def test_a_full_gateway_makes_no_store(lib: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = await lib.post("/v1/assistants", {"model": MODEL})

    def full(self: Answers, project: str) -> None:
        raise Overloaded("full", retry_after_s=1.0)

    monkeypatch.setattr(Answers, "require_room", full)
    refused = await lib.w.post("/v1/threads/runs", {"assistant_id": assistant["id"], "thread": asking()})

    assert refusal(refused)[0] == 429
    assert (await lib.get("/v1/vector_stores"))["data"] == []


@pytest.mark.parametrize("where", ["thread", "run"])
async def test_a_run_has_the_stores_of_the_thread_that_is_made_with_it(lib: Library, where: str) -> None:
    assistant = await lib.post("/v1/assistants", {"model": MODEL})
    wanted = asking(await lib.file("some text"))
    run = await lib.post(
        "/v1/threads/runs", {"assistant_id": assistant["id"], **({"thread": wanted} if where == "thread" else wanted)}
    )
    thread = await lib.get(f"/v1/threads/{run['thread_id']}")
    await lib.ingest()
    [store] = (await lib.get("/v1/vector_stores"))["data"]

    assert thread["tool_resources"]["file_search"]["vector_store_ids"] == [store["id"]]
    assert store["file_counts"]["completed"] == 1
    assert store["expires_after"] == {"anchor": "last_active_at", "days": 7}


async def test_stores_of_threads_end_a_week_after_their_last_use_and_those_of_assistants_stay(lib: Library) -> None:
    thread = await lib.post("/v1/threads", asking())
    changed = await lib.post("/v1/threads", {})
    changed = await lib.post(f"/v1/threads/{changed['id']}", asking())
    assistant = await lib.post("/v1/assistants", {"model": "m", **asking()})
    stores = [
        await lib.get(f"/v1/vector_stores/{made['tool_resources']['file_search']['vector_store_ids'][0]}")
        for made in (thread, changed, assistant)
    ]

    assert [store.get("expires_after") for store in stores] == [{"anchor": "last_active_at", "days": 7}] * 2 + [None]
    assert [store["expires_at"] for store in stores[:2]] == [s["last_active_at"] + 7 * 86_400 for s in stores[:2]]
    assert stores[2]["expires_at"] is None
