"""Searches of files inside responses: what the model is told, what clients see, and what becomes of it all."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.embedding_twin import EmbeddingTwin, embedding_card, embedding_member
from tests.gateway.responses.client import WHOLE, Caller, said, shape
from tests.gateway.responses.test_durability import a, b
from tests.gateway.runs.client import Caller as Assistants
from tests.gateway.runs.pair import pair
from tests.gateway.runs.test_file_search import ANSWER, FRUIT, MARK, SEARCH, answer
from tests.gateway.runs.test_function_calls import NOON, ROOMY, output
from tests.gateway.search.searching import Library, library
from tests.gateway.tools.samples import Call
from tests.gateway.twins import Script, raw_tokenizer, tokens

NOW = {"type": "function", "name": "now", "parameters": None}
SEARCHING = [
    *("output_item.added", "file_search_call.in_progress", "file_search_call.searching"),
    *("file_search_call.completed", "output_item.done"),
]
CITED = [*WHOLE[2:5], "output_text.annotation.added", *WHOLE[5:]]


@pytest.fixture
async def lib(tmp_path: Path) -> AsyncIterator[Library]:
    async with library(tmp_path, model=ROOMY) as made:
        yield made


def tool(store: str, **options: Any) -> dict[str, Any]:
    return {"type": "file_search", "vector_store_ids": [store.rpartition("/")[2]], **options}


def prompt_of(lib: Library) -> str:
    ids = lib.w.decode.requests[-1].prompt_token_ids
    return str(raw_tokenizer().decode(list(ids), skip_special_tokens=False))


async def test_a_search_is_an_item_and_the_answer_cites_what_it_found(lib: Library) -> None:
    store, file_ids = await lib.indexed(*FRUIT)
    lib.w.decode.first = [Script(output(SEARCH)), answer()]
    events = await Caller(lib.w).stream("What moves people?", tools=[tool(store)])
    response = events[-1].data["response"]
    search, message = response["output"]

    assert shape(events) == ["created", "in_progress", *SEARCHING, *CITED]
    assert [event.number for event in events] == list(range(len(events)))
    assert (search["type"], search["status"], search["results"]) == ("file_search_call", "completed", None)
    assert (search["id"][:3], search["queries"]) == ("fs_", ["trains and ships"])
    cited = {"type": "file_citation", "index": ANSWER.index(MARK), "file_id": file_ids[1], "filename": "1.txt"}
    assert message["content"] == [{"type": "output_text", "text": ANSWER, "annotations": [cited], "logprobs": []}]
    assert FRUIT[1] in prompt_of(lib)
    used = [len(request.prompt_token_ids) for request in lib.w.decode.requests]
    assert response["usage"]["input_tokens"] == sum(used)


@pytest.mark.parametrize("is_conversation", [False, True])
async def test_what_was_found_is_gone_on_from_and_cited_again(lib: Library, is_conversation: bool) -> None:
    store, file_ids = await lib.indexed(*FRUIT)
    lib.w.decode.first = [Script(output(SEARCH)), answer(), answer()]
    caller = Caller(lib.w)
    conversation = await caller.conversation()
    on = {"conversation": conversation} if is_conversation else {}
    first = await caller.create("What moves people?", tools=[tool(store)], **on)
    on = on or {"previous_response_id": first["id"]}
    second = await caller.create("Again?", tools=[tool(store)], **on)

    assert FRUIT[1] in prompt_of(lib)
    assert said(second) == ANSWER
    before, after = lib.w.decode.requests[1:]
    known = [*before.prompt_token_ids, *tokens(ANSWER)]
    assert list(after.prompt_token_ids)[: len(known)] == known
    assert [each["file_id"] for each in second["output"][0]["content"][0]["annotations"]] == [file_ids[1]]
    if is_conversation:
        types = [item["type"] for item in await caller.items(conversation)]
        assert types == ["message", "file_search_call", "message", "message", "message"]
        messages = await Assistants(lib.w).messages(conversation.replace("conv_", "thread_"))
        assert [message["content"][0]["text"]["annotations"] for message in messages[1::2]] == [
            [
                {
                    "type": "file_citation",
                    "text": MARK,
                    "start_index": ANSWER.index(MARK),
                    "end_index": ANSWER.index(MARK) + len(MARK),
                    "file_citation": {"file_id": file_ids[1]},
                }
            ]
        ] * 2


@pytest.mark.parametrize("is_conversation", [False, True])
async def test_an_output_with_a_search_can_be_sent_back(lib: Library, is_conversation: bool) -> None:
    store, _ = await lib.indexed(*FRUIT)
    lib.w.decode.first = [Script(output(SEARCH)), answer(), answer()]
    caller, include = Caller(lib.w), ["file_search_call.results"]
    first = await caller.create("What moves people?", tools=[tool(store)], include=include)
    sent = [{"role": "user", "content": "What moves people?"}, *first["output"]]
    if is_conversation:
        conversation = await caller.conversation(*sent)
        await caller.create("Again?", conversation=conversation)
        kept = (await caller.items(conversation))[1]
    else:
        second = await caller.create([*sent, {"role": "user", "content": "Again?"}])
        kept = (await caller.get(f"/v1/responses/{second['id']}/input_items", order="asc"))["data"][1]

    search = first["output"][0]
    assert search["results"] and kept == {**search, "id": kept["id"]}
    assert ANSWER in prompt_of(lib) and FRUIT[1] not in prompt_of(lib)


@pytest.mark.parametrize("store_it", [True, False])
async def test_results_are_shown_to_those_who_ask(lib: Library, store_it: bool) -> None:
    store, file_ids = await lib.indexed(*FRUIT)
    lib.w.decode.first = [Script(output(SEARCH)), answer()]
    caller, include = Caller(lib.w), ["file_search_call.results"]
    options = tool(store, max_num_results=1)
    response = await caller.create("What moves people?", tools=[options], include=include, store=store_it)
    [shown] = response["output"][0]["results"]

    assert (shown["file_id"], shown["filename"], shown["text"]) == (file_ids[1], "1.txt", FRUIT[1])
    assert 0 < shown["score"] <= 1
    if store_it:
        path = f"/v1/responses/{response['id']}"
        assert await caller.get(path, **{"include[]": include}) == response
        assert (await caller.get(path))["output"][0]["results"] is None


async def test_only_files_that_pass_the_filter_are_searched(lib: Library) -> None:
    store, file_ids = await lib.indexed(*FRUIT)
    await lib.post(f"{store}/files/{file_ids[0]}", {"attributes": {"kind": "fruit"}})
    wanted = {"type": "eq", "key": "kind", "value": "fruit"}
    lib.w.decode.first = [Script(output(SEARCH)), answer()]
    response = await Caller(lib.w).create(
        "x", tools=[tool(store, filters=wanted)], include=["file_search_call.results"]
    )

    assert [each["file_id"] for each in response["output"][0]["results"]] == [file_ids[0]]


async def test_a_search_that_uses_up_the_limit_is_the_last(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    lib.w.decode.first = [Script(output(SEARCH))]
    limit = len(output(SEARCH))
    events = await Caller(lib.w).stream("x", tools=[tool(store)], max_output_tokens=limit)
    response = events[-1].data["response"]

    assert shape(events) == ["created", "in_progress", *SEARCHING, "incomplete"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == limit


async def test_a_search_beside_a_function_waits_for_the_client(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    lib.w.decode.first = [Script(output(SEARCH, NOON)), answer()]
    caller = Caller(lib.w)
    first = await caller.create("What moves people?", tools=[tool(store), NOW])
    [search, call] = first["output"]
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "noon"}]
    second = await caller.create(outputs, previous_response_id=first["id"], tools=[tool(store), NOW])

    assert (search["status"], call["status"], first["status"]) == ("completed", "completed", "completed")
    assert said(second) == ANSWER
    assert FRUIT[1] in prompt_of(lib) and "noon" in prompt_of(lib)


OTHER = Call("file_search", {"query": "fruit"})


@pytest.mark.parametrize(
    ("turns", "limit", "statuses"),
    [
        ([output(SEARCH), output(OTHER)], None, ["completed", "completed"]),
        ([output(SEARCH)], 1, ["completed"]),
        ([output(SEARCH, OTHER)], 1, ["completed", "incomplete"]),
        ([output(SEARCH, OTHER, NOON)], 1, ["completed", "incomplete"]),
        ([], 0, []),
    ],
)
async def test_searches_over_max_tool_calls_are_not_made(
    lib: Library, turns: list[list[int]], limit: int | None, statuses: list[str]
) -> None:
    store, _ = await lib.indexed(*FRUIT)
    lib.w.decode.first = [*map(Script, turns), Script(output(SEARCH)) if limit is not None else answer()]
    caller = Caller(lib.w)
    response = await caller.create("x", tools=[tool(store), NOW], max_tool_calls=limit, store=True)
    searches = [item for item in response["output"] if item["type"] == "file_search_call"]

    assert (response["status"], response["max_tool_calls"]) == ("completed", limit)
    assert [item["status"] for item in searches] == statuses
    [*_, last] = response["output"]
    is_over = limit is not None and last["type"] == "message"
    assert is_over == ("<tool_call>" in said(response))  # the model wrote on, and nobody took it for a call
    assert (FRUIT[1] in prompt_of(lib)) == (bool(turns) and last["type"] == "message")


async def test_a_store_that_is_not_there_fails_the_response(lib: Library) -> None:
    lib.w.decode.first = [Script(output(SEARCH))]
    response = await Caller(lib.w).create("x", tools=[tool("vs_none")])

    assert (response["status"], response["error"]["code"]) == ("failed", "invalid_prompt")
    assert "vs_none" in response["error"]["message"]
    assert response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("after", [3, len(output(SEARCH)) - 1])
@pytest.mark.parametrize("turn", [1, 2])
async def test_a_search_goes_on_on_another_gateway(tmp_path: Path, after: int, turn: int) -> None:
    embedder = EmbeddingTwin()
    async with pair(tmp_path, model=ROOMY, embedder=embedder, run_flush_s=0) as both:
        for w in (both.first, both.second):
            await w.join(embedding_member(), embedding_card())
        store, file_ids = await Library(both.first, embedder).indexed(*FRUIT)
        scripts = [Script(output(SEARCH)), answer()]
        scripts[turn - 1].hang_after = min(after, len(scripts[turn - 1].output) - 1)
        both.first.decode.first = scripts
        both.second.decode.first = [Script(output(SEARCH)), answer()][turn - 1 :]
        response = await a(both).create("What moves people?", background=True, tools=[tool(store)])
        await both.first.decode.hanging.wait()
        await both.first.gateway.jobs.close()
        await both.lapse()
        ended = await b(both).settled(response["id"])
        events = await b(both).events(response["id"])

    assert (ended["status"], said(ended)) == ("completed", ANSWER)
    assert [event.number for event in events] == list(range(len(events)))
    assert shape(events) == ["created", "queued", "in_progress", *SEARCHING, *CITED]
    assert [item["type"] for item in ended["output"]] == ["file_search_call", "message"]
    assert ended["output"][1]["content"][0]["annotations"][0]["file_id"] == file_ids[1]
