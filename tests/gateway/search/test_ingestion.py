"""Indexing is durable: another gateway goes on where one ended, once, and failures have an end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.errors import InternalError, InvalidRequest, PeerGone
from services.gateway.embeddings.text import EmbeddingTokenizer
from services.gateway.file_services import FileServices, build_file_services
from services.gateway.search.chunks import Strategy, cut
from services.gateway.search.ingestion import BATCH_CHUNKS, MAX_TAKES
from services.gateway.settings import GatewaySettings
from tests.gateway.documents.samples import SENTENCE, docx, html, pdf
from tests.gateway.embedding_twin import embedding_card
from tests.gateway.search.searching import SMALL, Library, WaitingClock, library
from tests.gateway.store.samples import stored_keys

WAIT_S = 30.0
LONG = " ".join(f"sentence number {number} of a long text." for number in range(60))
"""More chunks than are written at once."""


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[Library]:
    """A gateway that gives up at once when no embedding worker answers."""
    async with library(tmp_path, ingestion_patience_s=0) as made:
        yield made


def another_gateway(lib: Library, clock: WaitingClock | None = None) -> FileServices:
    """The services of a second gateway on the same Redis and the same worker; its clock may stand still."""
    around = lib.w.gateway.files
    objects = around.storage._objects
    view, threads = lib.w.view, around.embeddings._threads
    random, settings = around.embeddings._random, GatewaySettings()
    return build_file_services(settings, view, lib.embedder, objects, threads._executor, clock or lib.w.clock, random)


def dying_gateway(lib: Library) -> FileServices:
    """A gateway that will renew no lease."""
    return another_gateway(lib, WaitingClock(lib.w.clock.now()))


def opened_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


async def file_in(lib: Library, store: str) -> dict[str, Any]:
    [file] = (await lib.get(f"{store}/files"))["data"]
    result: dict[str, Any] = file
    return result


async def stopped_in_the_middle(lib: Library, first: FileServices) -> tuple[str, "asyncio.Task[int]"]:
    """A store whose only file waits, after its first chunks, for the embedding worker."""
    store = await lib.store(await lib.file(LONG), chunking_strategy=SMALL)
    return store, await begun(lib, first)


async def begun(lib: Library, first: FileServices) -> "asyncio.Task[int]":
    """The indexing of the only file that waits, which stands still after its first chunks."""
    lib.embedder.closes_after = 1
    indexing = asyncio.create_task(first.ingestions.sweep())
    await asyncio.wait_for(lib.embedder.is_waiting.wait(), WAIT_S)
    return indexing


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.md", f"# Title\n{SENTENCE}"),
        ("a.pdf", pdf(SENTENCE)),
        ("a.docx", docx(SENTENCE)),
        ("a.html", html(SENTENCE)),
    ],
)
async def test_each_kind_of_file_is_found(lib: Library, name: str, data: str | bytes) -> None:
    store = await lib.store(await lib.file(data, name))
    await lib.ingest()
    [found] = await lib.search(store, "brown fox jumps")

    assert SENTENCE in found["content"][0]["text"]
    assert found["filename"] == name


async def test_another_gateway_goes_on_when_one_has_died(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, dying_gateway(lib))
    second = lib.w.gateway.files
    assert await second.ingestions.sweep() == 0
    lib.w.clock.advance(31)
    gate, lib.embedder.gate = lib.embedder.gate, opened_gate()
    await second.ingestions.sweep()
    num_embedded = lib.embedder.num_sequences
    tokenizer = EmbeddingTokenizer(embedding_card())
    needed = [sequence for chunk in cut(LONG, Strategy(100, 50), tokenizer) for sequence in chunk.sequences]

    file = await file_in(lib, store)
    content = await lib.get(f"{store}/files/{file['id']}/content")
    found = await lib.search(store, "sentence number 59 of a long text.", max_num_results=50)
    assert (file["status"], content["data"][0]["text"]) == ("completed", LONG)
    assert len({each["content"][0]["text"] for each in found}) == len(found) > BATCH_CHUNKS
    assert num_embedded == len(needed)  # nothing was done twice
    gate.set()
    await asyncio.wait_for(indexing, WAIT_S)


async def test_a_gateway_that_wakes_up_too_late_changes_nothing(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, dying_gateway(lib))
    lib.w.clock.advance(31)
    gate, lib.embedder.gate = lib.embedder.gate, opened_gate()
    await lib.w.gateway.files.ingestions.sweep()
    completed, found = await file_in(lib, store), await lib.search(store, "sentence", max_num_results=50)
    gate.set()
    await asyncio.wait_for(indexing, WAIT_S)

    assert completed["status"] == "completed"
    assert await file_in(lib, store) == completed
    assert await lib.search(store, "sentence", max_num_results=50) == found


async def test_a_gateway_that_leaves_gives_its_file_back_at_once(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, lib.w.gateway.files)
    indexing.cancel()
    await asyncio.wait([indexing], timeout=WAIT_S)
    lib.embedder.gate.set()

    assert await another_gateway(lib).ingestions.sweep() == 1
    assert (await file_in(lib, store))["status"] == "completed"


async def test_a_lease_is_renewed_while_a_file_is_indexed(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, lib.w.gateway.files)
    clock = lib.w.clock
    assert isinstance(clock, WaitingClock)
    for _ in range(8):  # twice the lease
        async with asyncio.timeout(WAIT_S):
            while not clock.is_awaited:
                await asyncio.sleep(0.005)
        clock.advance(7.5)
    assert await another_gateway(lib).ingestions.sweep() == 0
    lib.embedder.gate.set()
    await asyncio.wait_for(indexing, WAIT_S)

    assert (await file_in(lib, store))["status"] == "completed"


async def test_a_file_that_is_taken_out_meanwhile_is_dropped(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, lib.w.gateway.files)
    file = await file_in(lib, store)
    assert (await lib.w.client.delete(f"{store}/files/{file['id']}")).status_code == 200
    lib.embedder.gate.set()
    await asyncio.wait_for(indexing, WAIT_S)

    assert (await lib.get(store))["file_counts"]["total"] == 0
    assert await lib.search(store, "sentence") == []


async def chunk_keys(lib: Library) -> list[str]:
    """The keys with what was made of files."""
    keys = await stored_keys(lib.w.gateway.files.storage.of("default").state)
    return sorted(key for key in keys if key.endswith(("/chunks", "/vectors", "/owners")))


async def test_a_file_that_fails_in_the_middle_leaves_no_chunks(patient: Library) -> None:
    store, indexing = await stopped_in_the_middle(patient, patient.w.gateway.files)
    before = await chunk_keys(patient)
    patient.embedder.errors = [InternalError("defect")]
    patient.embedder.gate.set()
    await asyncio.wait_for(indexing, WAIT_S)

    assert len(before) == 3
    assert ((await file_in(patient, store))["status"], await chunk_keys(patient)) == ("failed", [])


async def test_a_batch_that_is_cancelled_in_the_middle_leaves_no_chunks(lib: Library) -> None:
    store, file_id = await lib.store(), await lib.file(LONG)
    batch = await lib.post(f"{store}/file_batches", {"file_ids": [file_id], "chunking_strategy": SMALL})
    indexing = await begun(lib, lib.w.gateway.files)
    before = await chunk_keys(lib)
    await lib.post(f"{store}/file_batches/{batch['id']}/cancel")
    lib.embedder.gate.set()
    await asyncio.wait_for(indexing, WAIT_S)

    assert len(before) == 3
    assert ((await file_in(lib, store))["status"], await chunk_keys(lib)) == ("cancelled", [])


async def test_who_indexes_a_file_that_is_added_again_meanwhile_loses_it(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, dying_gateway(lib))
    file = await file_in(lib, store)
    await lib.post(f"{store}/files", {"file_id": file["id"], "attributes": {"n": 2}})
    gate, lib.embedder.gate = lib.embedder.gate, opened_gate()
    assert await lib.w.gateway.files.ingestions.sweep() == 1
    completed, found = await file_in(lib, store), await lib.search(store, "sentence", max_num_results=50)
    gate.set()
    await asyncio.wait_for(indexing, WAIT_S)

    assert (completed["status"], completed["attributes"]) == ("completed", {"n": 2})
    assert completed["chunking_strategy"] != file["chunking_strategy"]
    assert await file_in(lib, store) == completed
    assert await lib.search(store, "sentence", max_num_results=50) == found


async def test_attributes_may_change_while_a_file_is_indexed(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, lib.w.gateway.files)
    file = await file_in(lib, store)
    await lib.post(f"{store}/files/{file['id']}", {"attributes": {"a": 1}})
    lib.embedder.gate.set()
    await asyncio.wait_for(indexing, WAIT_S)

    after = await file_in(lib, store)
    changed = {"attributes": {"a": 1}, "status": "completed", "usage_bytes": after["usage_bytes"]}
    assert after == {**file, **changed}


async def test_a_worker_that_fails_is_asked_again(lib: Library) -> None:
    store = await lib.store(await lib.file("some text"))
    lib.embedder.errors = [PeerGone("reset")]
    indexing = asyncio.create_task(lib.ingest())
    async with asyncio.timeout(WAIT_S):
        while not indexing.done():
            lib.w.clock.advance(1)
            await asyncio.sleep(0.005)

    assert (await file_in(lib, store))["status"] == "completed"
    assert len(lib.embedder.addresses) == 2


async def test_without_embedding_workers_a_file_fails_and_says_what_to_do(patient: Library) -> None:
    await patient.w.registry.leave("e1")
    await patient.w.view.refresh()
    store = await patient.store(await patient.file("some text"))
    await patient.ingest()
    error = (await file_in(patient, store))["last_error"]

    assert (error["code"], "tandem embed" in error["message"]) == ("server_error", True)


@pytest.mark.parametrize("error", [InternalError("defect"), InvalidRequest("no"), PeerGone("reset")])
async def test_one_file_that_fails_does_not_stop_the_next(patient: Library, error: Any) -> None:
    first, second = await patient.file("some text"), await patient.file("more text")
    store = await patient.store(first, second)
    patient.embedder.errors = [error]
    await patient.ingest()
    files = [await patient.get(f"{store}/files/{file_id}") for file_id in (first, second)]

    assert sorted(file["status"] for file in files) == ["completed", "failed"]
    assert [file["last_error"] for file in files if file["status"] == "failed"] == [
        {"code": "server_error", "message": error.message}
    ]


async def test_a_defect_fails_the_file_only(lib: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("defect")

    store = await lib.store(await lib.file("some text"))
    with monkeypatch.context() as patch:
        patch.setattr("services.gateway.search.ingestion.cut", broken)
        await lib.ingest()

    assert (await file_in(lib, store))["last_error"]["code"] == "server_error"


async def test_a_file_that_ends_every_gateway_is_given_up(lib: Library) -> None:
    store, indexing = await stopped_in_the_middle(lib, lib.w.gateway.files)
    indexing.cancel()
    await asyncio.wait([indexing], timeout=WAIT_S)
    for _ in range(MAX_TAKES - 1):
        lib.embedder.is_waiting.clear()
        indexing = asyncio.create_task(lib.w.gateway.files.ingestions.sweep())
        await asyncio.wait_for(lib.embedder.is_waiting.wait(), WAIT_S)
        indexing.cancel()
        await asyncio.wait([indexing], timeout=WAIT_S)
    await lib.ingest()

    error = (await file_in(lib, store))["last_error"]
    assert (error["code"], "never ended" in error["message"]) == ("server_error", True)


async def test_a_file_with_too_many_tokens_is_refused(tmp_path: Path) -> None:
    async with library(tmp_path, max_ingested_tokens=10) as lib:
        store = await lib.store(await lib.file("x" * 11))
        await lib.ingest()
        error = (await file_in(lib, store))["last_error"]

    assert (error["code"], "at most 10" in error["message"]) == ("invalid_file", True)


async def test_new_files_wake_the_queue(lib: Library) -> None:
    following = asyncio.create_task(lib.w.gateway.files.ingestions.follow(3600.0))
    try:
        store = await lib.store(await lib.file("some text"))
        async with asyncio.timeout(WAIT_S):
            while (await file_in(lib, store))["status"] != "completed":
                await asyncio.sleep(0.01)
    finally:
        following.cancel()
        await asyncio.wait([following], timeout=WAIT_S)
