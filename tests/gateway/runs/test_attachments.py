"""Files that messages bring for file search: they go into the vector store of the thread, and runs find them there."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.apis.stored import refusal
from tests.gateway.runs.client import DEADLINE_S, Caller, text_of
from tests.gateway.runs.test_file_search import ANSWER, FRUIT, SEARCH, answer, searching
from tests.gateway.runs.test_function_calls import ROOMY, output
from tests.gateway.search.searching import Library, WaitingClock, library
from tests.gateway.twins import Script, tokens

HALTED = Script(tokens("hello world"), hang_after=1)
DAY_S = 86_400


@pytest.fixture
async def lib(tmp_path: Path) -> AsyncIterator[Library]:
    async with library(tmp_path, model=ROOMY) as made:
        yield made


def bringing(*file_ids: str, tool: str = "file_search") -> dict[str, Any]:
    attachments = [{"file_id": file_id, "tools": [{"type": tool}]} for file_id in file_ids]
    return {"role": "user", "content": "What moves people?", "attachments": attachments}


async def store_of(lib: Library, thread: str) -> Any:
    """The id of the thread's vector store; None if it has none."""
    shown = (await lib.get(f"/v1/threads/{thread}"))["tool_resources"]
    [store] = shown["file_search"]["vector_store_ids"] if shown else [None]
    return store


async def files_of(lib: Library, store: str) -> list[str]:
    return sorted(file["id"] for file in (await lib.get(f"/v1/vector_stores/{store}/files"))["data"])


async def num_stores(lib: Library) -> int:
    return len((await lib.get("/v1/vector_stores"))["data"])


async def test_a_message_brings_its_files_into_a_store_of_its_thread(lib: Library) -> None:
    caller = Caller(lib.w)
    first, second, third = [await lib.file(text) for text in FRUIT]
    thread = await caller.thread()
    message = await caller.post(f"/v1/threads/{thread}/messages", **bringing(first, second, first))
    store = await store_of(lib, thread)
    shown = await lib.get(f"/v1/vector_stores/{store}")
    await caller.post(f"/v1/threads/{thread}/messages", **bringing(second, third))
    await caller.post(f"/v1/threads/{thread}/messages", **bringing("file-x", tool="code_interpreter"))

    assert message["attachments"] == bringing(first, second, first)["attachments"]
    assert shown["expires_after"] == {"anchor": "last_active_at", "days": 7}
    assert shown["expires_at"] == shown["last_active_at"] + 7 * DAY_S
    assert (await store_of(lib, thread), await num_stores(lib)) == (store, 1)
    assert await files_of(lib, store) == sorted([first, second, third])


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("asked", [None, "vector_stores", "vector_store_ids"])
async def test_a_new_thread_has_what_its_first_messages_bring(lib: Library, has_run: bool, asked: str | None) -> None:
    caller = Caller(lib.w)
    own, brought, more = [await lib.file(text) for text in FRUIT]
    thread: dict[str, Any] = {"messages": [bringing(brought), bringing(more, brought)]}
    if asked == "vector_stores":
        thread["tool_resources"] = {"file_search": {asked: [{"file_ids": [own]}]}}
    elif asked == "vector_store_ids":
        named = (await lib.store(own)).rpartition("/")[2]
        thread["tool_resources"] = {"file_search": {asked: [named]}}
    if has_run:
        run = await caller.post("/v1/threads/runs", assistant_id=await caller.assistant(), thread=thread)
        made = run["thread_id"]
    else:
        made = (await caller.post("/v1/threads", **thread))["id"]
    store = await store_of(lib, made)

    assert await num_stores(lib) == 1
    assert await files_of(lib, store) == sorted([brought, more, *([own] if asked else [])])
    expiry = (await lib.get(f"/v1/vector_stores/{store}")).get("expires_after")
    assert expiry == (None if asked == "vector_store_ids" else {"anchor": "last_active_at", "days": 7})


@pytest.mark.parametrize("may_wait", [False, True])
async def test_a_run_brings_the_files_of_its_messages(lib: Library, may_wait: bool) -> None:
    caller = Caller(lib.w)
    file_id = await lib.file(FRUIT[0])
    thread, assistant = await caller.thread(), await caller.assistant()
    options = {"additional_messages": [bringing(file_id)], "if_active": "queue" if may_wait else "refuse"}
    if may_wait:
        lib.w.decode.first = [HALTED]
        first = await caller.run(thread, assistant)
        await lib.w.decode.hanging.wait()
        second = await caller.run(thread, assistant, **options)
        assert await store_of(lib, thread) is None
        await caller.post(f"/v1/threads/{thread}/runs/{first['id']}/cancel")
    else:
        second = await caller.run(thread, assistant, **options)
    assert (await caller.settled(thread, second["id"]))["status"] == "completed"

    assert await files_of(lib, await store_of(lib, thread)) == [file_id]
    assert [each["attachments"] for each in await caller.messages(thread)].count(bringing(file_id)["attachments"]) == 1


async def test_a_run_whose_file_is_gone_when_its_turn_comes_fails_and_says_so(lib: Library) -> None:
    caller = Caller(lib.w)
    file_id = await lib.file(FRUIT[0])
    thread, assistant = await caller.thread(), await caller.assistant()
    lib.w.decode.first = [HALTED]
    first = await caller.run(thread, assistant)
    await lib.w.decode.hanging.wait()
    second = await caller.run(thread, assistant, additional_messages=[bringing(file_id)], if_active="queue")
    await lib.w.client.delete(f"/v1/files/{file_id}")
    await caller.post(f"/v1/threads/{thread}/runs/{first['id']}/cancel")
    ended = await caller.settled(thread, second["id"])

    assert ended["last_error"] == {
        "code": "invalid_prompt",
        "message": f"The messages cannot be added: No such File object: {file_id}",
    }
    assert await num_stores(lib) == 0


@pytest.mark.parametrize("way", ["message", "thread", "thread and run", "run", "waiting run"])
async def test_nothing_is_made_for_a_file_that_does_not_exist(lib: Library, way: str) -> None:
    caller = Caller(lib.w)
    thread, assistant = await caller.thread(), await caller.assistant()
    body = bringing(await lib.file(FRUIT[0]), "file-x")
    run = {"assistant_id": assistant, "additional_messages": [body], "if_active": "refuse"}
    path, wanted = {
        "message": (f"/v1/threads/{thread}/messages", body),
        "thread": ("/v1/threads", {"messages": [body]}),
        "thread and run": ("/v1/threads/runs", {"assistant_id": assistant, "thread": {"messages": [body]}}),
        "run": (f"/v1/threads/{thread}/runs", run),
        "waiting run": (f"/v1/threads/{thread}/runs", {**run, "if_active": "queue"}),
    }[way]
    unknown = refusal(await lib.w.post("/v1/vector_stores", {"file_ids": ["file-x"]}))

    assert refusal(await lib.w.post(path, wanted)) == unknown
    assert (unknown[0], unknown[1]["message"]) == (404, "No such File object: file-x")
    assert (await num_stores(lib), len(await caller.messages(thread))) == (0, 1)
    assert (await caller.get(f"/v1/threads/{thread}/runs"))["data"] == []


async def test_a_refused_message_or_run_leaves_no_store(lib: Library) -> None:
    caller = Caller(lib.w)
    body = bringing(await lib.file(FRUIT[0]))
    thread, assistant = await caller.thread(), await caller.assistant()
    lib.w.decode.first = [HALTED]
    run = await caller.run(thread, assistant)
    await lib.w.decode.hanging.wait()
    active = refusal(await lib.w.post(f"/v1/threads/{thread}/messages", body))
    absent = refusal(await lib.w.post("/v1/threads/thread_x/messages", body))
    second = {"assistant_id": assistant, "additional_messages": [body]}
    rival = refusal(await lib.w.post(f"/v1/threads/{thread}/runs", second))
    nobody = {"assistant_id": "asst_x", "thread": {"messages": [body]}}
    nameless = refusal(await lib.w.post("/v1/threads/runs", nobody))

    assert active == (400, active[1]) and "Can't add messages" in active[1]["message"]
    assert (absent[0], rival[0], nameless[0]) == (404, 400, 404)
    assert f"already has an active run {run['id']}" in rival[1]["message"]
    assert (await num_stores(lib), await store_of(lib, thread)) == (0, None)


async def test_many_messages_at_once_share_one_store(lib: Library) -> None:
    caller = Caller(lib.w)
    file_ids = [await lib.file(f"file {number}") for number in range(8)]
    thread = await caller.thread()
    shared = await lib.file("shared")
    await asyncio.gather(*(store_of(lib, thread) for _ in file_ids))  # connections to Redis, so that nobody is first
    await asyncio.gather(
        *(caller.post(f"/v1/threads/{thread}/messages", **bringing(file_id, shared)) for file_id in file_ids)
    )

    assert await num_stores(lib) == 1
    assert await files_of(lib, await store_of(lib, thread)) == sorted([*file_ids, shared])
    assert len(await caller.messages(thread)) == 1 + len(file_ids)


async def test_an_expired_store_is_followed_by_a_new_one_and_a_deleted_one_is_told(lib: Library) -> None:
    caller = Caller(lib.w)
    first, second = await lib.file(FRUIT[0]), await lib.file(FRUIT[1])
    thread = await caller.thread()
    await caller.post(f"/v1/threads/{thread}/messages", **bringing(first))
    expired = await store_of(lib, thread)
    lib.w.clock.advance(7 * DAY_S + 1)
    await lib.w.gateway.files.upkeep.sweep()
    assert (await lib.get(f"/v1/vector_stores/{expired}"))["status"] == "expired"
    named = {"tool_resources": {"file_search": {"vector_store_ids": [expired]}}, "messages": [bringing(second)]}
    refused = refusal(await lib.w.post("/v1/threads", named))
    await caller.post(f"/v1/threads/{thread}/messages", **bringing(second))
    store = await store_of(lib, thread)

    assert refused[1]["message"] == f"Vector store {expired} is expired."
    assert store != expired and await files_of(lib, store) == [second]
    await lib.w.client.delete(f"/v1/vector_stores/{store}")
    gone = refusal(await lib.w.post(f"/v1/threads/{thread}/messages", bringing(first)))
    assert (gone[0], gone[1]["message"]) == (404, f"No vector store found with id '{store}'.")


async def searching_run(lib: Library) -> tuple[Caller, str, str]:
    """A run that searches what its thread was brought, which nobody has indexed yet."""
    caller = Caller(lib.w)
    lib.w.decode.first = [Script(output(SEARCH)), answer()]
    thread = (await caller.post("/v1/threads", messages=[bringing(await lib.file(FRUIT[1]))]))["id"]
    run = await caller.run(thread, await caller.assistant(tools=[searching()]))
    return caller, thread, run["id"]


async def until_waiting(lib: Library) -> WaitingClock:
    clock = lib.w.clock
    assert isinstance(clock, WaitingClock)
    async with asyncio.timeout(DEADLINE_S):
        while not clock.is_awaited:
            await asyncio.sleep(0.005)
    return clock


async def test_a_search_waits_until_the_files_are_indexed(lib: Library) -> None:
    caller, thread, run = await searching_run(lib)
    clock = await until_waiting(lib)
    waiting = await caller.get(f"/v1/threads/{thread}/runs/{run}")
    await lib.ingest()
    clock.advance(1)
    ended = await caller.settled(thread, run)

    assert (waiting["status"], ended["status"]) == ("in_progress", "completed")
    [cited] = (await caller.messages(thread))[-1]["content"][0]["text"]["annotations"]
    assert cited["file_citation"]["file_id"] in await files_of(lib, await store_of(lib, thread))
    assert text_of(await caller.events(thread, run)) == ANSWER


async def test_a_search_goes_on_with_what_is_there_when_its_time_is_over(lib: Library) -> None:
    caller, thread, run = await searching_run(lib)
    clock = await until_waiting(lib)
    clock.advance(59)
    await until_waiting(lib)
    assert (await caller.get(f"/v1/threads/{thread}/runs/{run}"))["status"] == "in_progress"
    clock.advance(1)
    ended = await caller.settled(thread, run)
    steps = await caller.get(f"/v1/threads/{thread}/runs/{run}/steps", order="asc")

    assert ended["status"] == "completed"
    assert steps["data"][0]["step_details"]["tool_calls"][0]["file_search"]["results"] == []


async def test_a_run_that_waits_for_files_can_be_cancelled(lib: Library) -> None:
    caller, thread, run = await searching_run(lib)
    await until_waiting(lib)
    await caller.post(f"/v1/threads/{thread}/runs/{run}/cancel")

    assert (await caller.get(f"/v1/threads/{thread}/runs/{run}"))["status"] == "cancelled"


async def test_without_patience_a_search_does_not_wait(tmp_path: Path) -> None:
    async with library(tmp_path, model=ROOMY, indexing_wait_s=0.0) as lib:
        caller, thread, run = await searching_run(lib)
        assert (await caller.settled(thread, run))["status"] == "completed"
