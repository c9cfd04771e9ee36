"""``/v1/vector_stores``: objects, files, batches, their counts and their ends."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.errors import StateUnavailable
from services.gateway.search.ingestion import MAX_TAKES
from services.gateway.search.operations import EnqueueIngestion
from services.gateway.store.changes import Operation
from services.gateway.store.keys import attached_key
from services.gateway.store.kinds import FILE
from services.gateway.store.object_store import Done, Objects
from tests.gateway.apis.stored import ids, refusal
from tests.gateway.search.searching import SMALL, Library, library
from tests.gateway.store.samples import stored_keys

NO_FILES = {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}


async def test_a_new_store_has_every_field(lib: Library) -> None:
    store = await lib.post("/v1/vector_stores")

    assert re.fullmatch(r"vs_[0-9A-Za-z]{24}", store["id"])
    assert store == await lib.get(f"/v1/vector_stores/{store['id']}")
    assert store == {
        "id": store["id"],
        "object": "vector_store",
        "created_at": store["created_at"],
        "name": "",
        "metadata": {},
        "last_active_at": store["created_at"],
        "expires_at": None,
        "status": "completed",
        "usage_bytes": 0,
        "file_counts": NO_FILES,
    }


async def test_a_modification_changes_what_it_names(lib: Library) -> None:
    path = await lib.store(name="n", description="d", metadata={"a": "b"})
    policy = {"anchor": "last_active_at", "days": 2}
    changed = await lib.post(path, {"name": "m", "expires_after": policy})
    reset = await lib.post(path, {"name": None, "expires_after": None, "metadata": None})

    assert (changed["name"], changed["description"], changed["metadata"]) == ("m", "d", {"a": "b"})
    assert (changed["expires_after"], changed["expires_at"]) == (policy, changed["last_active_at"] + 2 * 86_400)
    assert (reset["name"], "expires_after" in reset, reset["expires_at"], reset["metadata"]) == ("", False, None, {})


async def test_a_store_counts_its_files_by_status(lib: Library) -> None:
    good, bad = await lib.file("good text"), await lib.file(b"\xff\x00", "a.bin")
    path = await lib.store(good, bad, chunking_strategy=SMALL)
    before = await lib.get(path)
    await lib.ingest()
    after = await lib.get(path)

    assert (before["status"], before["usage_bytes"]) == ("in_progress", 0)
    assert before["file_counts"] == {**NO_FILES, "in_progress": 2, "total": 2}
    assert after["file_counts"] == {**NO_FILES, "completed": 1, "failed": 1, "total": 2}
    assert (after["status"], after["usage_bytes"] > 1000) == ("completed", True)
    listed = (await lib.get("/v1/vector_stores"))["data"]
    assert listed == [after]


async def test_a_file_of_a_store_shows_how_it_was_indexed(lib: Library) -> None:
    file_id = await lib.file("good text")
    path = await lib.store()
    added = await lib.post(
        f"{path}/files", {"file_id": file_id, "chunking_strategy": SMALL, "attributes": {"a": "x", "b": 1.5, "c": True}}
    )
    await lib.ingest()
    file = await lib.get(f"{path}/files/{file_id}")

    assert added == {
        "id": file_id,
        "object": "vector_store.file",
        "usage_bytes": 0,
        "created_at": added["created_at"],
        "vector_store_id": path.rpartition("/")[2],
        "status": "in_progress",
        "last_error": None,
        "chunking_strategy": SMALL,
        "attributes": {"a": "x", "b": 1.5, "c": True},
    }
    assert file == {**added, "status": "completed", "usage_bytes": file["usage_bytes"]}
    assert (await lib.get(path))["usage_bytes"] == file["usage_bytes"] > 0
    content = await lib.get(f"{path}/files/{file_id}/content")
    assert content == {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": "good text"}],
        "has_more": False,
        "next_page": None,
    }


async def test_without_a_strategy_chunks_have_800_tokens_of_which_400_overlap(lib: Library) -> None:
    path = await lib.store(await lib.file())
    [file] = (await lib.get(f"{path}/files"))["data"]

    static = {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}
    assert file["chunking_strategy"] == {"type": "static", "static": static}


async def test_what_cannot_be_indexed_says_why(lib: Library) -> None:
    binary, empty = await lib.file(b"\xff\x00", "a.bin"), await lib.file(b"")
    path = await lib.store(binary, empty)
    await lib.ingest()
    errors = [(await lib.get(f"{path}/files/{file_id}"))["last_error"] for file_id in (binary, empty)]

    assert [error["code"] for error in errors] == ["unsupported_file", "invalid_file"]
    assert "not text" in errors[0]["message"]
    assert refusal(await lib.w.client.get(f"{path}/files/{empty}/content"))[0] == 400


async def test_lists_of_files_have_one_status_if_it_is_named(lib: Library) -> None:
    file_ids = [await lib.file() for _ in range(3)]
    path = await lib.store(*file_ids[:2])
    await lib.ingest()
    await lib.post(f"{path}/files", {"file_id": file_ids[2]})

    assert await ids(lib.w, f"{path}/files", order="asc") == file_ids
    assert await ids(lib.w, f"{path}/files", filter="completed", order="asc") == file_ids[:2]
    assert await ids(lib.w, f"{path}/files", filter="in_progress") == file_ids[2:]
    assert await ids(lib.w, f"{path}/files", after=file_ids[1]) == file_ids[:1]
    assert refusal(await lib.w.client.get(f"{path}/files", params={"filter": "x"}))[1]["param"] == "filter"


async def test_a_file_that_is_added_again_is_indexed_again(lib: Library) -> None:
    path, [file_id] = await lib.indexed("some text")
    used = (await lib.get(path))["usage_bytes"]
    again = await lib.post(f"{path}/files", {"file_id": file_id, "attributes": {"n": 2}})
    during = await lib.get(path)
    await lib.ingest()

    assert (again["status"], again["attributes"]) == ("in_progress", {"n": 2})
    assert (during["usage_bytes"], during["file_counts"]["total"]) == (0, 1)
    assert (await lib.get(path))["usage_bytes"] == used


async def test_a_file_that_is_added_again_is_the_last_one_and_has_new_chunks(lib: Library) -> None:
    long = "words and more words. " * 10
    path, [first, second] = await lib.indexed(long, "other text")
    before = await lib.search(path, "words", max_num_results=50)
    await lib.post(f"{path}/files", {"file_id": first, "chunking_strategy": SMALL})
    order, during = await ids(lib.w, f"{path}/files", order="asc"), await lib.search(path, "words")
    await lib.ingest()
    after = await lib.search(path, "words", max_num_results=50)

    assert order == await ids(lib.w, f"{path}/files", order="asc", filter="completed") == [second, first]
    assert [each["file_id"] for each in during] == [second]
    assert len([each for each in before if each["file_id"] == first]) == 1
    assert len([each for each in after if each["file_id"] == first]) > 1


async def test_a_file_may_be_added_again_any_number_of_times(lib: Library) -> None:
    path, [file_id] = await lib.indexed("some text")
    for _ in range(MAX_TAKES):
        await lib.post(f"{path}/files", {"file_id": file_id})
        await lib.ingest()

    assert (await lib.get(f"{path}/files/{file_id}"))["status"] == "completed"
    assert len(await lib.search(path, "some text")) == 1


async def test_a_batch_takes_files_that_are_in_the_store_over(lib: Library) -> None:
    path, [first] = await lib.indexed("first")
    second = await lib.file("second")
    one = await lib.post(f"{path}/file_batches", {"file_ids": [first]})
    other = await lib.post(f"{path}/file_batches", {"file_ids": [first, second]})
    await lib.ingest()
    counts = [(await lib.get(f"{path}/file_batches/{each['id']}"))["file_counts"] for each in (one, other)]

    assert counts == [NO_FILES, {**NO_FILES, "completed": 2, "total": 2}]
    assert (await lib.get(path))["file_counts"] == {**NO_FILES, "completed": 2, "total": 2}


async def test_a_refused_batch_leaves_the_files_of_the_store_as_they_are(tmp_path: Path) -> None:
    async with library(tmp_path, max_project_objects=5) as lib:
        path, file_ids = await lib.indexed("apples and pears", "plums and cherries")
        before = await lib.get(f"{path}/files")
        status, error = refusal(await lib.w.post(f"{path}/file_batches", {"file_ids": file_ids}))
        found = await lib.search(path, "apples and pears")
        after = await lib.get(f"{path}/files")
        await lib.post(f"{path}/files", {"file_id": file_ids[0]})  # which needs no room

    assert (status, error["code"], "has 5 stored objects" in error["message"]) == (403, "quota_exceeded", True)
    assert after == before
    assert {each["file_id"] for each in found} == set(file_ids)


async def test_files_stay_where_redis_goes_away_while_they_are_added_again(
    lib: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, [file_id] = await lib.indexed("some text")
    apply = Objects.apply

    async def unreachable(self: Objects, operations: Sequence[Operation], **options: Any) -> Sequence[Done]:
        if any(isinstance(each, EnqueueIngestion) for each in operations):
            raise StateUnavailable("Redis went away.")
        return await apply(self, operations, **options)

    before = await lib.get(f"{path}/files/{file_id}")
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "apply", unreachable)
        status, _ = refusal(await lib.w.post(f"{path}/files", {"file_id": file_id}))

    assert status == 503
    assert await lib.get(f"{path}/files/{file_id}") == before
    assert len(await lib.search(path, "some text")) == 1


async def test_what_is_taken_out_of_a_store_is_not_found_any_more(lib: Library) -> None:
    path, [first, second] = await lib.indexed("apples and pears", "plums and cherries")
    deleted = (await lib.w.client.delete(f"{path}/files/{first}")).json()

    assert deleted == {"id": first, "object": "vector_store.file.deleted", "deleted": True}
    assert [found["file_id"] for found in await lib.search(path, "apples and pears")] == [second]
    assert (await lib.get(f"/v1/files/{first}"))["id"] == first
    status, error = refusal(await lib.w.client.delete(f"{path}/files/{first}"))
    assert (status, error["message"]) == (
        404,
        f"No file found with id '{first}' in vector store '{path.rpartition('/')[2]}'.",
    )


async def test_a_deleted_file_is_taken_out_of_all_stores(lib: Library) -> None:
    file_id = await lib.file("some text")
    paths = [await lib.store(file_id), await lib.store(file_id), await lib.store(file_id)]
    await lib.ingest()
    await lib.w.client.delete(paths[2])
    assert (await lib.w.client.delete(f"/v1/files/{file_id}")).status_code == 200

    for path in paths[:2]:
        store = await lib.get(path)
        assert (store["file_counts"], store["usage_bytes"]) == (NO_FILES, 0)
        assert await lib.search(path, "some text") == []
    keys = await stored_keys(lib.w.gateway.files.storage.of("default").state)
    assert not [key for key in keys if "chunks" in key or "vectors" in key or "stores" in key]


async def test_a_deleted_store_leaves_nothing(lib: Library) -> None:
    path, [file_id] = await lib.indexed("some text")
    await lib.post(f"{path}/file_batches", {"file_ids": [file_id]})
    gone = (await lib.w.client.delete(path)).json()
    await lib.ingest()

    assert gone == {"id": path.rpartition("/")[2], "object": "vector_store.deleted", "deleted": True}
    keys = await stored_keys(lib.w.gateway.files.storage.of("default").state)
    assert not [key for key in keys if "vector_store" in key or "/stores" in key or "ingestions" in key]
    assert refusal(await lib.w.client.get(path))[0] == 404


async def test_a_file_knows_only_of_stores_that_it_is_in(lib: Library) -> None:
    file_id = await lib.file("some text")
    removed, deleted, kept = [await lib.store(file_id) for _ in range(3)]
    await lib.ingest()
    await lib.w.client.delete(f"{removed}/files/{file_id}")
    await lib.w.client.delete(deleted)
    state = lib.w.gateway.files.storage.of("default").state
    async with state.reaching() as client:
        links: Any = await client.smembers(attached_key("default", FILE.ref(file_id), "stores"))
    await lib.w.client.delete(kept)

    assert links == {f"vector_store_file:{kept.rpartition('/')[2]}.{file_id}".encode()}
    assert not [key for key in await stored_keys(state) if "stores" in key]


async def test_stores_expire_some_days_after_their_last_use(lib: Library) -> None:
    policy = {"anchor": "last_active_at", "days": 1}
    path, [file_id] = await lib.indexed("some text", expires_after=policy)
    lib.w.clock.advance(80_000)
    assert len(await lib.search(path, "some text")) == 1
    lib.w.clock.advance(80_000)
    await lib.w.gateway.files.upkeep.sweep()
    used = await lib.get(path)
    lib.w.clock.advance(6_500)
    await lib.w.gateway.files.upkeep.sweep()
    expired = await lib.get(path)

    assert (used["status"], used["expires_at"] - used["created_at"]) == ("completed", 80_000 + 86_400)
    assert (expired["status"], expired["file_counts"], expired["usage_bytes"]) == ("expired", NO_FILES, 0)
    for refused in (
        await lib.w.post(f"{path}/search", {"query": "some"}),
        await lib.w.post(f"{path}/files", {"file_id": file_id}),
    ):
        assert "is expired" in refusal(refused)[1]["message"]


async def test_a_batch_counts_its_own_files(lib: Library) -> None:
    first, second, third = [await lib.file() for _ in range(3)]
    path = await lib.store(first)
    await lib.ingest()
    own = {"file_id": third, "attributes": {"n": 3}, "chunking_strategy": SMALL}
    batch = await lib.post(f"{path}/file_batches", {"files": [{"file_id": second}, own]})
    batch_path = f"{path}/file_batches/{batch['id']}"
    await lib.ingest()

    assert re.fullmatch(r"vsfb_[0-9A-Za-z]{24}", batch["id"])
    assert batch == {
        "id": batch["id"],
        "created_at": batch["created_at"],
        "vector_store_id": path.rpartition("/")[2],
        "object": "vector_store.files_batch",
        "status": "in_progress",
        "file_counts": {**NO_FILES, "in_progress": 2, "total": 2},
    }
    done = await lib.get(batch_path)
    assert (done["status"], done["file_counts"]) == ("completed", {**NO_FILES, "completed": 2, "total": 2})
    assert await ids(lib.w, f"{batch_path}/files", order="asc") == [second, third]
    assert await ids(lib.w, f"{batch_path}/files", filter="failed") == []
    assert (await lib.get(f"{path}/files/{third}"))["attributes"] == {"n": 3}


async def test_a_cancelled_batch_stops(lib: Library) -> None:
    file_ids = [await lib.file() for _ in range(3)]
    path = await lib.store()
    batch = await lib.post(f"{path}/file_batches", {"file_ids": file_ids})
    cancelled = await lib.post(f"{path}/file_batches/{batch['id']}/cancel")
    await lib.ingest()
    after = await lib.get(f"{path}/file_batches/{batch['id']}")

    assert cancelled == after
    assert (after["status"], after["file_counts"]) == ("cancelled", {**NO_FILES, "cancelled": 3, "total": 3})
    assert lib.embedder.requests == []


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"file_ids": ["file-x"]}, None, "No such File object: file-x"),
        ({"name": 5}, "name", "expected a string"),
        ({"extra": 1}, "extra", "Unknown parameter"),
        ({"expires_after": {"anchor": "last_active_at", "days": 366}}, "expires_after.days", "366"),
        ({"chunking_strategy": {"type": "x"}}, "chunking_strategy.type", "'auto' and 'static'"),
        (
            {"chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 99}}},
            "chunking_strategy.static.max_chunk_size_tokens",
            ">= 100",
        ),
        (
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51},
                }
            },
            "chunking_strategy.static.chunk_overlap_tokens",
            "<= 50",
        ),
    ],
)
async def test_new_stores_are_checked(lib: Library, body: dict[str, Any], param: str | None, message: str) -> None:
    status, error = refusal(await lib.w.post("/v1/vector_stores", body))

    assert (status, error["param"]) == (400 if param else 404, param)
    assert message in error["message"]


async def test_batches_and_attributes_are_checked(lib: Library) -> None:
    path, [file_id] = await lib.indexed("text")
    both = {"file_ids": [file_id], "files": [{"file_id": file_id}]}
    bodies: list[dict[str, Any]] = [{}, both, {"file_ids": []}, {"file_ids": ["nothing"]}]
    for body in bodies:
        assert refusal(await lib.w.post(f"{path}/file_batches", body))[0] == 400
    wrong: list[dict[str, Any]] = [
        {"a": []},
        {"a": None},
        {"a": "x" * 513},
        {"k" * 65: 1},
        {str(n): n for n in range(17)},
    ]
    for attributes in wrong:
        status, error = refusal(await lib.w.post(f"{path}/files/{file_id}", {"attributes": attributes}))
        assert (status, error["param"].startswith("attributes")) == (400, True)
    assert (await lib.post(f"{path}/files/{file_id}", {"attributes": {"a": 1}}))["attributes"] == {"a": 1}
    assert (await lib.post(f"{path}/files/{file_id}", {"attributes": None}))["attributes"] == {}
