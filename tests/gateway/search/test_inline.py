"""Vector stores that are made together with assistants and threads."""

from typing import Any

import pytest

from tests.gateway.apis.stored import refusal
from tests.gateway.search.searching import SMALL, Library


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
