"""Hostile lines: each is imported or refused with a sentence, and what was imported breaks no request."""

import asyncio
import io
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from services.errors import ConfigurationError
from services.gateway.moving.lines import lines_of
from tests.chaos import hostile_json
from tests.chaos.fuzzing import Budget
from tests.gateway.moving.moving import exported, importer, lines
from tests.gateway.moving.test_openai_objects import (
    ANSWERED,
    ASSISTANT,
    CONVERSATION,
    FILE,
    ITEM,
    RESPONSE,
    RUN,
    SAID,
    STEP,
    STORE,
    STORED_FILE,
    THREAD,
)
from tests.gateway.runs.test_file_search import CONTENT
from tests.gateway.search.searching import Library, library
from tests.gateway.twins import MODEL

ASSISTANT_HERE = {**ASSISTANT, "model": MODEL, "tools": []}
RESULT = {"file_id": "file-abc", "file_name": "trains.txt", "score": 0.5}
FOUND = {"arguments": "{}", "shown": {"results": [RESULT]}, "texts": ["t"], "output": "o", "sources": {"m": "file-abc"}}
SEARCH = {"id": "fs_1", "type": "file_search_call", "status": "completed", "queries": ["q"], "results": None}
SEARCHED = {
    "type": "tool_calls",
    "tool_calls": [{"id": "call_1", "type": "file_search", "file_search": {"results": [RESULT]}}],
}
LEAD = [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "name": "f", "content": "x"},
]
PLAIN: list[dict[str, Any]] = [FILE, STORE, STORED_FILE, ASSISTANT_HERE, THREAD, ANSWERED, RUN, STEP, CONVERSATION]
WHOLE: list[dict[str, Any]] = [
    *PLAIN,
    {"kind": "thread.message", "body": {**ANSWERED, "id": "msg_lead"}, "kept": {"lead": LEAD, "sources": {"m": "f"}}},
    {
        "kind": "thread.run.step",
        "body": {**STEP, "id": "step_2", "step_details": SEARCHED},
        "kept": {"searches": {"call_1": FOUND}},
    },
    *({"kind": "conversation.item", "parent": "conv_123", "body": body} for body in (SAID, ITEM)),
    {"kind": "conversation.item", "parent": "conv_123", "body": SEARCH, "kept": {"found": FOUND}},
    {
        "kind": "response",
        "body": {**RESPONSE, "output": [SEARCH, *RESPONSE["output"]]},  # type: ignore[misc]
        "kept": {"input": [SAID], "found": {"fs_1": FOUND}, "expires_at": 2**31},
    },
]
THREADS = ("thread_abc123", "thread_123")


@dataclass
class Target:
    """A gateway over a real Redis, and the loop that it lives in."""

    runner: asyncio.Runner
    lib: Library
    folder: Path
    files: Path


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    files = tmp_path / "files"
    files.mkdir()
    (files / "file-abc").write_text("trains and ships move people.")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        lib = runner.run(stack.enter_async_context(library(tmp_path)))
        yield Target(runner, lib, tmp_path, files)
        runner.run(stack.aclose())


def test_lines_with_hostile_values(target: Target, budget: Budget) -> None:
    places = st.integers(0, len(WHOLE) - 1)
    damaged = places.flatmap(lambda place: st.tuples(st.just(place), hostile_json.mutated(WHOLE[place])))

    async def check(value: tuple[int, bytes]) -> None:
        place, line = value
        await import_all(target, lines(*WHOLE[:place]) + line + b"\n" + lines(*WHOLE[place + 1 :]))
        await read_all(target)

    budget.run(target.runner, damaged, check, examples=25)


def test_lines_that_are_no_json(target: Target, budget: Budget) -> None:
    async def check(data: bytes) -> None:
        await import_all(target, data)

    budget.run(
        target.runner, st.binary(max_size=60) | hostile_json.values.map(hostile_json.encoded), check, examples=20
    )


async def import_all(target: Target, data: bytes) -> None:
    """Import into an empty Redis; every line that cannot be taken has to be told."""
    storage, told = target.lib.w.gateway.files.storage, list[str]()
    async with storage.of("default").state.reaching() as client:
        await client.flushall()
    importing = importer(target.lib.w, target.files, on_failure=told.append)
    try:
        restored = await importing.read(lines_of(io.BytesIO(data)))
    except ConfigurationError:  # the beginning of an export of another version
        return
    assert len(told) == restored.num_failed
    await target.lib.ingest()


async def read_all(target: Target) -> None:
    """Ask for all that there may be, and go on from it; nothing may be our fault."""
    w = target.lib.w
    paths = ["/v1/assistants", "/v1/files", "/v1/files/file-abc/content", "/v1/vector_stores"]
    paths += ["/v1/vector_stores/vs_1/files", f"/v1/responses/{RESPONSE['id']}/input_items"]
    paths += [f"/v1/threads/{thread}/{name}" for thread in THREADS for name in ("messages", "runs")]
    paths += ["/v1/conversations/conv_abc123/items", "/v1/conversations/conv_123/items"]
    with_found = {
        f"/v1/threads/thread_abc123/runs/{RUN['id']}/steps": CONTENT,
        f"/v1/responses/{RESPONSE['id']}": "file_search_call.results",
    }
    asked: dict[str, dict[str, str]] = {path: {} for path in paths}
    asked |= {path: {"include[]": name} for path, name in with_found.items()}
    for path, params in asked.items():
        response = await w.client.get(path, params=params)
        assert response.status_code in (200, 400, 404), (path, response.text)
    for thread in THREADS:
        body = {"assistant_id": ASSISTANT["id"], "model": MODEL, "stream": True}
        answer = await w.post(f"/v1/threads/{thread}/runs", body)
        assert answer.status_code in (200, 400, 404) and "server_error" not in answer.text, answer.text
    for context in ({"previous_response_id": RESPONSE["id"]}, {"conversation": "conv_123"}):
        answer = await w.post("/v1/responses", {"model": MODEL, "input": "x", **context})
        assert answer.status_code in (200, 400, 404) and "server_error" not in answer.text, answer.text
    await exported(w, target.folder / "out")
