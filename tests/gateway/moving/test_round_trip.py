"""What was exported and imported is what it was, to every client: in another project, and on another Redis."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gateway.moving.moving import Reader, exported, imported, kinds, objects_in
from tests.gateway.responses.client import Caller as Responses
from tests.gateway.responses.test_file_search import tool
from tests.gateway.runs.client import Caller
from tests.gateway.runs.test_file_search import FRUIT, SEARCH, answer, resources, searching
from tests.gateway.runs.test_function_calls import NOON, NOW, ROOMY, output
from tests.gateway.search.searching import Library, library
from tests.gateway.twins import Script

LARGE = bytes(range(256)) * 6000
"""More than one piece of a file in Redis."""


@dataclass(frozen=True)
class Filled:
    """A project with something of everything."""

    lib: Library
    threads: list[str]
    responses: list[str]
    store: str


@pytest.fixture
async def filled(tmp_path: Path) -> AsyncIterator[Filled]:
    (tmp_path / "from").mkdir()
    async with library(tmp_path / "from", model=ROOMY) as lib:
        yield await fill(lib)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Library]:
    """Another cluster, in the same project."""
    (tmp_path / "to").mkdir()
    async with library(tmp_path / "to", model=ROOMY) as lib:
        yield lib


async def fill(lib: Library) -> Filled:
    store, _ = await lib.indexed(*FRUIT, name="fruit", metadata={"a": "1"})
    large = await lib.file(LARGE, "large.bin")
    await lib.post(f"{store}/file_batches", {"files": [{"file_id": large, "attributes": {"size": "large"}}]})
    await lib.ingest()
    await lib.store(name="empty", expires_after={"anchor": "last_active_at", "days": 3})
    runs, answers = await _runs(lib, store), await _responses(lib, store)
    return Filled(lib, [*runs, answers[0]], answers[1:], store)


async def _runs(lib: Library, store: str) -> list[str]:
    caller = Caller(lib.w)
    searcher = await caller.assistant(tools=[searching()], tool_resources=resources(store), name="searcher")
    clock = await caller.assistant(tools=[NOW], metadata={"b": "2"}, response_format={"type": "text"})
    lib.w.decode.first = [Script(output(SEARCH)), answer(), Script(output(NOON)), answer("noon"), answer("again")]
    searched = await caller.thread("What moves people?")
    await caller.stream(searched, searcher)
    called = await caller.thread("Look", "What time is it?")
    await _call(caller, called, clock)
    await caller.stream(called, clock)
    shown, picture = await caller.thread(), {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "low"}}
    await caller.post(f"/v1/threads/{shown}/messages", role="user", content=[picture, {"type": "text", "text": "!"}])
    return [searched, called, shown]


async def _call(caller: Caller, thread: str, assistant: str) -> None:
    waiting = await caller.settled(thread, (await caller.run(thread, assistant))["id"])
    [call] = waiting["required_action"]["submit_tool_outputs"]["tool_calls"]
    path = f"/v1/threads/{thread}/runs/{waiting['id']}"
    await caller.post(f"{path}/submit_tool_outputs", tool_outputs=[{"tool_call_id": call["id"], "output": "noon"}])
    await caller.settled(thread, waiting["id"], "completed")


async def _responses(lib: Library, store: str) -> list[str]:
    """The thread of a conversation, and responses."""
    responses = Responses(lib.w)
    conversation = await responses.conversation(
        {"role": "user", "content": "hello"},
        {"role": "developer", "content": "Be short."},
        {"type": "function_call", "call_id": "call_a", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_a", "output": "x"},
    )
    lib.w.decode.first = [Script(output(SEARCH)), answer(), Script(output(SEARCH)), answer(), answer("second")]
    in_conversation = await responses.create("What?", conversation=conversation, tools=[tool(store)])
    first = await responses.create("What moves people?", tools=[tool(store)], metadata={"c": "3"})
    second = await responses.create("And?", previous_response_id=first["id"])
    thread = conversation.replace("conv_", "thread_")
    return [thread, *(each["id"] for each in (in_conversation, first, second))]


async def test_another_cluster_answers_every_request_alike(filled: Filled, other: Library, tmp_path: Path) -> None:
    data = await exported(filled.lib.w, tmp_path / "files")
    restored = await imported(other.w, data, tmp_path / "files")
    await other.ingest()

    assert not restored.is_cut
    assert restored.made.total() == len(kinds(data)) - 2
    before = await Reader(filled.lib.w).everything(filled.threads, filled.responses)
    assert await Reader(other.w).everything(filled.threads, filled.responses) == before
    found = await filled.lib.search(filled.store, "trains and ships")
    assert len(found) > 1
    assert await other.search(filled.store, "trains and ships") == found
    assert objects_in(await exported(other.w, tmp_path / "files")) == objects_in(data)


async def test_another_project_answers_every_request_alike(filled: Filled, tmp_path: Path) -> None:
    w = filled.lib.w
    restored = await imported(w, await exported(w, tmp_path / "files"), tmp_path / "files", "second")
    await filled.lib.ingest()

    before = await Reader(w).everything(filled.threads, filled.responses)
    mine = {"authorization": f"Bearer {await w.keys.create('default')}"}
    theirs = {"authorization": f"Bearer {await w.keys.create('second')}"}
    await w.gateway.keys.refresh()
    assert restored.present.total() == 0
    assert await Reader(w, theirs).everything(filled.threads, filled.responses) == before
    assert await Reader(w, mine).everything(filled.threads, filled.responses) == before


async def test_parents_come_before_what_is_beneath_them(filled: Filled, tmp_path: Path) -> None:
    order = kinds(await exported(filled.lib.w, tmp_path / "files"))

    assert (order[0], order[-1]) == ("tandem.export", "tandem.end")
    assert list(dict.fromkeys(order[1:-1])) == [
        *("file", "vector_store", "vector_store.files_batch", "vector_store.file", "assistant"),
        *("thread", "thread.message", "thread.run", "thread.run.step", "conversation.item", "response"),
    ]


async def test_what_is_there_already_is_passed_over(filled: Filled, other: Library, tmp_path: Path) -> None:
    data = await exported(filled.lib.w, tmp_path / "files")
    first = await imported(other.w, data, tmp_path / "files")
    await other.ingest()
    before = await Reader(other.w).everything(filled.threads, filled.responses)
    again = await imported(other.w, data, tmp_path / "files")

    assert (again.made.total(), again.present) == (0, first.made)
    assert await Reader(other.w).everything(filled.threads, filled.responses) == before


async def test_an_import_that_was_interrupted_goes_on(filled: Filled, other: Library, tmp_path: Path) -> None:
    data = await exported(filled.lib.w, tmp_path / "files")
    whole = data.splitlines(keepends=True)
    half = len(whole) // 2
    cut = await imported(other.w, b"".join(whole[:half]), tmp_path / "files")
    restored = await imported(other.w, data, tmp_path / "files")
    await other.ingest()

    assert cut.is_cut
    assert (cut.made.total(), restored.present.total()) == (half - 1, half - 1)
    before = await Reader(filled.lib.w).everything(filled.threads, filled.responses)
    assert await Reader(other.w).everything(filled.threads, filled.responses) == before


def prompt_ids(lib: Library) -> list[int]:
    return list(lib.w.decode.requests[-1].prompt_token_ids)


async def test_conversations_go_on_where_they_were(filled: Filled, other: Library, tmp_path: Path) -> None:
    await imported(other.w, await exported(filled.lib.w, tmp_path / "files"), tmp_path / "files")
    await other.ingest()
    prompts = []
    for lib in (filled.lib, other):
        runs, responses = Caller(lib.w), Responses(lib.w)
        assistants = await runs.get("/v1/assistants", order="asc")
        seen = []
        searched, called, _, conversation = filled.threads
        for thread in (searched, called, conversation):
            await runs.post(f"/v1/threads/{thread}/messages", role="user", content="Go on.")
            await runs.stream(thread, assistants["data"][0]["id"])
            seen.append(prompt_ids(lib))
        await responses.create("Go on.", previous_response_id=filled.responses[-1])
        prompts.append([*seen, prompt_ids(lib)])

    assert prompts[0] == prompts[1]
