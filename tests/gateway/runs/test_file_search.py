"""Searches of files inside runs: what the model is told, what clients see, and what becomes of it all."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.errors import NoEmbeddingWorker
from services.gateway.runs.form import MAX_SEARCHES
from tests.gateway.apis.stored import refusal
from tests.gateway.embedding_twin import EmbeddingTwin, embedding_card, embedding_member
from tests.gateway.runs.client import Caller, Seen, names, seen, text_of
from tests.gateway.runs.pair import Pair, pair, until_hanging
from tests.gateway.runs.test_function_calls import NOON, NOW, ROOMY, output
from tests.gateway.runs.test_tools import together
from tests.gateway.search.searching import Library, library
from tests.gateway.tools.samples import Call
from tests.gateway.twins import END_ID, Script, raw_tokenizer, tokens

CONTENT = "step_details.tool_calls[*].file_search.results[*].content"
FRUIT = ("apples and pears grow on trees", "trains and ships move people", "apples are trees of knowledge")
SEARCH = Call("file_search", {"query": "trains and ships"})
MARK = "【0:0†source】"
ANSWER = f"Trains move people {MARK} and no 【7:7†source】."
SEARCHED = [
    *("run.created", "run.queued", "run.in_progress", "run.step.created", "run.step.in_progress"),
    *("run.step.delta", "run.step.completed", "run.step.created", "run.step.in_progress"),
    *("message.created", "message.in_progress", "message.delta", "message.completed"),
    *("run.step.completed", "run.completed"),
]


def answer(text: str = ANSWER) -> Script:
    return Script([*tokens(text), END_ID])


def searching(**options: Any) -> dict[str, Any]:
    return {"type": "file_search", **({"file_search": options} if options else {})}


def resources(store: str) -> dict[str, Any]:
    return {"file_search": {"vector_store_ids": [store.rpartition("/")[2]]}}


@pytest.fixture
async def lib(tmp_path: Path) -> AsyncIterator[Library]:
    async with library(tmp_path, model=ROOMY) as made:
        yield made


async def searched(lib: Library, **options: Any) -> tuple[Caller, str, list[Seen], list[str]]:
    """A run that searched once and answered: caller, thread, events, ids of the files."""
    store, file_ids = await lib.indexed(*FRUIT)
    caller = Caller(lib.w)
    lib.w.decode.first = [Script(output(SEARCH)), answer()]
    assistant = await caller.assistant(tools=[searching(**options)], tool_resources=resources(store))
    thread = await caller.thread("What moves people?")
    return caller, thread, await caller.stream(thread, assistant), file_ids


async def test_a_search_is_a_step_and_the_answer_cites_what_it_found(lib: Library) -> None:
    caller, thread, events, file_ids = await searched(lib)
    run = events[-1].data["id"]
    steps = (await caller.get(f"/v1/threads/{thread}/runs/{run}/steps", order="asc"))["data"]
    message = (await caller.messages(thread))[-1]

    assert together(events) == SEARCHED
    assert [step["type"] for step in steps] == ["tool_calls", "message_creation"]
    [call] = steps[0]["step_details"]["tool_calls"]
    assert call.keys() == {"id", "type", "file_search"} and call["type"] == "file_search"
    assert call["file_search"]["ranking_options"] == {"ranker": "default_2024_08_21", "score_threshold": 0.0}
    found = call["file_search"]["results"]
    assert found[0]["file_name"] == "1.txt" and len(found) == 3
    assert all(each.keys() == {"file_id", "file_name", "score"} for each in found)
    assert steps[0]["usage"]["completion_tokens"] == len(output(SEARCH))
    cited = {
        "type": "file_citation",
        "text": MARK,
        "start_index": ANSWER.index(MARK),
        "end_index": ANSWER.index(MARK) + len(MARK),
        "file_citation": {"file_id": file_ids[1]},
    }
    assert message["content"] == [{"type": "text", "text": {"value": ANSWER, "annotations": [cited]}}]
    deltas = [event.data["delta"]["content"][0]["text"] for event in events if event.name == "thread.message.delta"]
    assert [each for delta in deltas for each in delta["annotations"]] == [{"index": 0, **cited}]
    assert text_of(events) == ANSWER


async def test_the_model_reads_what_was_found_with_its_marks(lib: Library) -> None:
    _, _, events, _ = await searched(lib)
    asked, told = (
        raw_tokenizer().decode(request.prompt_token_ids, skip_special_tokens=False) for request in lib.w.decode.requests
    )

    assert '"name": "file_search"' in asked and "file_search" in lib.w.decode.requests[0].sampling.grammar
    assert '"arguments": {"query": "trains and ships"}' in told
    assert f"<tool_response>\n{MARK} 1.txt\n{FRUIT[1]}" in told
    usage = events[-1].data["usage"]
    assert usage["prompt_tokens"] == sum(len(request.prompt_token_ids) for request in lib.w.decode.requests)


async def test_content_of_results_is_shown_to_those_who_ask(lib: Library) -> None:
    caller, thread, events, _ = await searched(lib)
    path = f"/v1/threads/{thread}/runs/{events[-1].data['id']}/steps"
    [step, _] = (await caller.get(path, order="asc", **{"include[]": CONTENT}))["data"]
    one = await caller.get(f"{path}/{step['id']}", include=CONTENT)
    plain = await caller.get(f"{path}/{step['id']}")
    status, error = refusal(await lib.w.client.get(path, params={"include[]": "everything"}))

    results = step["step_details"]["tool_calls"][0]["file_search"]["results"]
    assert results[0]["content"] == [{"type": "text", "text": FRUIT[1]}]
    assert one == step
    assert "content" not in plain["step_details"]["tool_calls"][0]["file_search"]["results"][0]
    assert (status, error["param"]) == (400, "include")


async def test_streams_show_content_to_those_who_ask(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    caller = Caller(lib.w)
    lib.w.decode.first = [Script(output(SEARCH)), answer()]
    assistant = await caller.assistant(tools=[searching()], tool_resources=resources(store))
    thread, asking = await caller.thread(), {"include[]": CONTENT}
    body = {"assistant_id": assistant, "stream": True}
    events = seen(await lib.w.client.post(f"/v1/threads/{thread}/runs", params=asking, json=body))
    path = f"/v1/threads/{thread}/runs/{events[-1].data['id']}"
    [step, _] = (await caller.get(f"{path}/steps", order="asc", **asking))["data"]
    again = seen(await lib.w.client.get(f"{path}/events", params=asking))
    status, error = refusal(await lib.w.client.post(f"/v1/threads/{thread}/runs", params={"include[]": "x"}, json=body))

    assert together(events) == SEARCHED and again == events
    ended = next(event.data for event in events if event.name == "thread.run.step.completed")
    begun, found = [event.data for event in events if event.name == "thread.run.step.delta"]
    assert ended == step
    assert begun["delta"]["step_details"]["tool_calls"][0]["file_search"] == {}
    [part], [call] = found["delta"]["step_details"]["tool_calls"], step["step_details"]["tool_calls"]
    assert part["file_search"] == call["file_search"]
    assert part["file_search"]["results"][0]["content"] == [{"type": "text", "text": FRUIT[1]}]
    plain = [event.data for event in await caller.events(thread, events[-1].data["id"])]
    assert not any("'content': [{'type': 'text', 'text': 'trains" in str(each) for each in plain)
    assert (status, error["param"]) == (400, "include")
    assert len((await caller.get(f"/v1/threads/{thread}/runs"))["data"]) == 1


async def test_results_are_bounded_by_what_the_tool_says(lib: Library) -> None:
    ranking = {"ranker": "auto", "score_threshold": 0.4}
    caller, thread, events, file_ids = await searched(lib, max_num_results=2, ranking_options=ranking)
    steps = await caller.get(f"/v1/threads/{thread}/runs/{events[-1].data['id']}/steps", order="asc")
    [call] = steps["data"][0]["step_details"]["tool_calls"]

    assert call["file_search"]["ranking_options"] == ranking
    assert [each["file_id"] for each in call["file_search"]["results"]] == [file_ids[1]]


async def test_stores_of_thread_and_assistant_are_searched_as_one(lib: Library) -> None:
    first, [one] = await lib.indexed("trains")
    second, [two] = await lib.indexed("ships and more ships")
    caller = Caller(lib.w)
    lib.w.decode.first = [Script(output(SEARCH)), answer()]
    thread = await caller.thread()
    await caller.post(f"/v1/threads/{thread}", tool_resources=resources(second))
    assistant = await caller.assistant(tools=[searching()], tool_resources=resources(first))
    run = (await caller.stream(thread, assistant))[-1].data["id"]
    steps = await caller.get(f"/v1/threads/{thread}/runs/{run}/steps", order="asc")
    results = steps["data"][0]["step_details"]["tool_calls"][0]["file_search"]["results"]

    assert {each["file_id"] for each in results} == {one, two}


async def test_results_take_no_more_than_their_share_of_the_context(lib: Library) -> None:
    store, _ = await lib.indexed(*(f"trains and ships {number} " + "x" * 1500 for number in range(3)))
    caller = Caller(lib.w)
    lib.w.decode.first = [Script(output(SEARCH)), Script(output(SEARCH)), answer()]
    assistant = await caller.assistant(tools=[searching()], tool_resources=resources(store))
    thread = await caller.thread()
    run = (await caller.stream(thread, assistant))[-1].data
    path = f"/v1/threads/{thread}/runs/{run['id']}/steps"
    first, second, _ = (await caller.get(path, order="asc", **{"include[]": CONTENT}))["data"]

    texts = [each["content"][0]["text"] for each in first["step_details"]["tool_calls"][0]["file_search"]["results"]]
    assert len(texts) == 3 and len(texts[2]) < len(texts[1])
    assert sum(len(tokens(text)) for text in texts) == ROOMY.context_length // 4
    assert second["step_details"]["tool_calls"][0]["file_search"]["results"] == []
    prompt = raw_tokenizer().decode(lib.w.decode.requests[2].prompt_token_ids, skip_special_tokens=False)
    assert "There is no room for more passages." in prompt


async def test_a_model_that_searches_on_and_on_has_to_answer_in_the_end(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    caller = Caller(lib.w)
    lib.w.decode.first = [*[Script(output(SEARCH))] * MAX_SEARCHES, answer()]
    assistant = await caller.assistant(tools=[searching(), NOW], tool_resources=resources(store))
    events = await caller.stream(await caller.thread(), assistant)
    *searching_on, last = [request.sampling.grammar for request in lib.w.decode.requests]

    assert (names(events)[-1], text_of(events)) == ("run.completed", ANSWER)
    assert len(searching_on) == MAX_SEARCHES and all('\\"file_search' in grammar for grammar in searching_on)
    assert '\\"file_search' not in last and '\\"now' in last
    prompt = raw_tokenizer().decode(lib.w.decode.requests[-1].prompt_token_ids, skip_special_tokens=False)
    assert '"name": "file_search", "description"' in prompt


async def test_later_runs_cite_what_earlier_ones_found_and_number_their_own_searches_on(lib: Library) -> None:
    caller, thread, _, file_ids = await searched(lib)
    [run] = (await caller.get(f"/v1/threads/{thread}/runs"))["data"]
    lib.w.decode.first = [Script(output(Call("file_search", {"query": "knowledge"}))), answer(f"{MARK}【1:0†source】")]
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="And knowledge?")
    await caller.stream(thread, run["assistant_id"])
    annotations = (await caller.messages(thread))[-1]["content"][0]["text"]["annotations"]

    assert [each["file_citation"]["file_id"] for each in annotations] == [file_ids[1], file_ids[2]]


async def test_searches_and_functions_of_one_turn_share_a_step(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    caller = Caller(lib.w)
    lib.w.decode.first = [Script(output(SEARCH, NOON)), answer()]
    tools = [searching(), NOW]
    assistant = await caller.assistant(tools=tools, tool_resources=resources(store))
    thread = await caller.thread()
    asked = await caller.stream(thread, assistant)
    [waiting] = asked[-1].data["required_action"]["submit_tool_outputs"]["tool_calls"]
    path = f"/v1/threads/{thread}/runs/{asked[-1].data['id']}"
    await caller.post(f"{path}/submit_tool_outputs", tool_outputs=[{"tool_call_id": waiting["id"], "output": "12"}])
    await caller.settled(thread, asked[-1].data["id"])
    step, _ = (await caller.get(f"{path}/steps", order="asc", **{"include[]": CONTENT}))["data"]

    streamed = seen(await lib.w.client.get(f"{path}/events", params={"include[]": CONTENT}))
    deltas = [event.data["delta"] for event in streamed if event.name == "thread.run.step.delta"]

    assert names(asked)[-1] == "run.requires_action"
    search, function = step["step_details"]["tool_calls"]
    assert deltas[-1]["step_details"]["tool_calls"][0]["file_search"] == search["file_search"]
    assert search["file_search"]["results"][0]["content"][0]["text"] == FRUIT[1]
    assert (function["function"]["name"], function["function"]["output"]) == ("now", "12")
    assert waiting["id"] == function["id"] != search["id"]
    prompt = raw_tokenizer().decode(lib.w.decode.requests[1].prompt_token_ids, skip_special_tokens=False)
    assert "</tool_response>\n<tool_response>\n12" in prompt


@pytest.mark.parametrize("query", ["{}", '{"query": " "}', "[1]"])
async def test_a_call_without_a_query_finds_nothing(lib: Library, query: str) -> None:
    store, _ = await lib.indexed(*FRUIT)
    caller = Caller(lib.w)
    text = f'<tool_call>\n{{"name": "file_search", "arguments": {query}}}\n</tool_call>'
    lib.w.decode.first = [Script([*tokens(text), END_ID]), answer("Sorry.")]
    assistant = await caller.assistant(tools=[searching()], tool_resources=resources(store))
    events = await caller.stream(await caller.thread(), assistant)

    assert (names(events)[-1], text_of(events)) == ("run.completed", "Sorry.")
    assert all(request.is_background for request in lib.embedder.requests)  # those of the indexing


async def test_a_run_whose_store_is_gone_fails_and_says_so(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    caller = Caller(lib.w)
    lib.w.decode.first = [Script(output(SEARCH))]
    assistant = await caller.assistant(tools=[searching()], tool_resources=resources(store))
    await lib.w.client.delete(store)
    events = await caller.stream(await caller.thread(), assistant)

    error = events[-1].data["last_error"]
    assert names(events)[-2:] == ["run.step.failed", "run.failed"]
    assert error["code"] == "invalid_prompt" and store.rpartition("/")[2] in error["message"]


async def test_a_search_waits_for_an_embedding_worker(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    caller = Caller(lib.w)
    lib.w.decode.first = [*[Script(output(SEARCH))] * 3, answer()]
    lib.embedder.errors = [NoEmbeddingWorker("gone")] * 2
    assistant = await caller.assistant(tools=[searching()], tool_resources=resources(store))
    events = await caller.stream(await caller.thread(), assistant)

    assert together(events) == SEARCHED


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Pair, EmbeddingTwin]]:
    async with AsyncExitStack() as stack:
        embedder = EmbeddingTwin()
        gateways = await stack.enter_async_context(pair(tmp_path, model=ROOMY, embedder=embedder))
        for w in (gateways.first, gateways.second):
            await w.join(embedding_member(), embedding_card())
        yield gateways, embedder


@pytest.mark.parametrize("moment", ["calling", "searching", "answering"])
async def test_another_gateway_ends_a_run_with_one_search_and_the_same_text(
    both: tuple[Pair, EmbeddingTwin], moment: str
) -> None:
    gateways, embedder = both
    lib = Library(gateways.first, embedder)
    store, file_ids = await lib.indexed(*FRUIT)
    calling = output(SEARCH)
    if moment == "calling":
        gateways.first.decode.first = [Script(calling, hang_after=len(calling) - 10)]
        gateways.second.decode.first = [Script(calling), answer()]
    elif moment == "searching":
        embedder.gate.clear()
        gateways.first.decode.first = [Script(calling)]
        gateways.second.decode.first = [Script(calling), answer()]
    else:
        gateways.first.decode.first = [Script(calling), Script(answer().output, hang_after=len(tokens(ANSWER)) - 3)]
        gateways.second.decode.first = [answer()]
    thread = await gateways.a.thread("What moves people?")
    assistant = await gateways.a.assistant(tools=[searching()], tool_resources=resources(store))
    run = (await gateways.a.run(thread, assistant))["id"]
    if moment == "searching":
        await embedder.is_waiting.wait()
    else:
        await until_hanging(gateways.first, 1)
    await gateways.first.gateway.jobs.close()
    embedder.gate.set()
    await gateways.lapse()
    ended = await gateways.b.settled(thread, run)
    events = await gateways.b.events(thread, run)
    steps = (await gateways.b.get(f"/v1/threads/{thread}/runs/{run}/steps", order="asc"))["data"]

    assert (ended["status"], together(events)) == ("completed", SEARCHED)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [step["type"] for step in steps] == ["tool_calls", "message_creation"]
    assert text_of(events) == ANSWER
    [cited] = (await gateways.b.messages(thread))[-1]["content"][0]["text"]["annotations"]
    assert cited["file_citation"] == {"file_id": file_ids[1]}
