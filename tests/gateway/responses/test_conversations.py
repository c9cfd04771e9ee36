"""Conversations: threads in another form, which responses add to."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.gateway.responses.history import ContextReader
from services.gateway.runs.turns import Called, Said, TurnEnded, TurnEvent
from tests.gateway.apis.stored import refusal, stored_world
from tests.gateway.responses.client import Caller, said, shape
from tests.gateway.runs.client import Caller as Assistants
from tests.gateway.runs.fake_turns import FakeTurns, calls, text
from tests.gateway.twins import END_ID, MODEL, Script, World, raw_tokenizer, tokens

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
LOCKED = "Another process is currently operating on this conversation. Please retry in a few seconds."


def user(words: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": words}


def texts(items: list[Any]) -> list[tuple[str, str]]:
    return [(item["role"], "".join(part["text"] for part in item["content"])) for item in items]


async def test_a_conversation_is_made_changed_and_deleted(w: World) -> None:
    caller = Caller(w)
    made = await caller.post("/v1/conversations", metadata={"a": "1"}, items=[user("hello")])
    path = f"/v1/conversations/{made['id']}"
    changed = await caller.post(path, metadata={"b": "2"})
    deleted = (await w.client.delete(path)).json()

    assert set(made) == {"id", "object", "created_at", "metadata"}
    assert (made["id"][:5], made["object"], made["metadata"]) == ("conv_", "conversation", {"a": "1"})
    assert changed == {**made, "metadata": {"b": "2"}}
    assert deleted == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    gone = f"Conversation with id '{made['id']}' not found."
    for refused in (await w.client.get(path), await w.client.get(f"{path}/items"), await w.client.delete(path)):
        assert (refusal(refused)[0], refusal(refused)[1]["message"]) == (404, gone)
    asked = await Caller(w).refused(input="x", conversation=made["id"])
    assert (asked["status"], asked["message"]) == (404, gone)


async def test_items_of_all_kinds_keep_their_order_on_every_page(w: World) -> None:
    caller = Caller(w)
    given = [
        user("hello"),
        {"type": "message", "role": "developer", "content": "Be short."},
        {"type": "function_call", "call_id": "call_a", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_a", "output": "x"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Paris"}]},
    ]
    conversation = await caller.conversation(*given)
    path = f"/v1/conversations/{conversation}/items"
    added = await caller.post(path, items=[user("world")])
    whole = await caller.items(conversation)
    paged: list[Any] = []
    while len(paged) < len(whole):
        after = {"after": paged[-1]["id"]} if paged else {}
        page = await caller.get(path, order="asc", limit=2, **after)
        paged += page["data"]
        assert page["has_more"] == (len(paged) < len(whole))

    types = ["message", "message", "function_call", "function_call_output", "message", "message"]
    assert [item["type"] for item in whole] == types
    assert paged == whole
    assert (await caller.get(path, limit=100))["data"] == whole[::-1]
    assert (added["data"], added["first_id"]) == (whole[-1:], whole[-1]["id"])
    for item in whole:
        assert await caller.get(f"{path}/{item['id']}") == item


async def test_an_item_is_deleted(w: World) -> None:
    caller = Caller(w)
    conversation = await caller.conversation(user("hello"), user("world"))
    first, second = await caller.items(conversation)
    path = f"/v1/conversations/{conversation}/items/{first['id']}"
    deleted = (await w.client.delete(path)).json()

    assert (deleted["id"], deleted["object"]) == (conversation, "conversation")
    assert await caller.items(conversation) == [second]
    assert refusal(await w.client.get(path))[0] == 404


async def test_a_response_adds_its_input_and_its_output(w: World) -> None:
    caller = Caller(w)
    conversation = await caller.conversation(user("hello"))
    response = await caller.create("What is?", conversation={"id": conversation})
    items = await caller.items(conversation)

    assert response["conversation"] == {"id": conversation}
    assert texts(items) == [("user", "hello"), ("user", "What is?"), ("assistant", "Paris")]
    assert items[-1] == response["output"][0]
    asked = (await caller.get(f"/v1/responses/{response['id']}/input_items"))["data"]
    assert asked == items[1:2]


async def test_calls_and_their_outputs_are_gone_on_from(tmp_path: Path) -> None:
    turns = FakeTurns(calls(("weather", "{}")), text("Sun", "ny."))
    async with stored_world(tmp_path, turns=lambda services: turns) as w:
        caller = Caller(w)
        conversation = await caller.conversation()
        asked = await caller.create("Weather?", conversation=conversation, tools=[WEATHER])
        [call] = asked["output"]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "22"}
        await caller.create([output], conversation=conversation)
        items = await caller.items(conversation)

    types = ["message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in items] == types
    assert items[1] == call
    told = [message for entry in turns.requests[1].history for message in entry.messages]
    assert [message["role"] for message in told] == ["user", "assistant", "tool"]
    assert (told[2]["name"], told[2]["content"]) == ("weather", "22")


@pytest.mark.parametrize("is_conversation", [True, False])
async def test_a_call_that_was_cut_is_not_gone_on_from(tmp_path: Path, is_conversation: bool) -> None:
    cut: list[TurnEvent] = [Said((20,), (Called(0, '{"ci', "weather"),)), TurnEnded("length", (21,))]
    turns = FakeTurns(cut, text("Sunny."))
    async with stored_world(tmp_path, turns=lambda services: turns) as w:
        caller = Caller(w)
        conversation = await caller.conversation()
        goes_on: dict[str, Any] = {"conversation": conversation} if is_conversation else {}
        asked = await caller.create("Weather?", tools=[WEATHER], **goes_on)
        goes_on = goes_on or {"previous_response_id": asked["id"]}
        answer = await caller.create("Well?", **goes_on)
        items = await caller.items(conversation)

    assert [(item["type"], item["status"]) for item in asked["output"]] == [("function_call", "incomplete")]
    assert said(answer) == "Sunny."
    told = [message for entry in turns.requests[1].history for message in entry.messages]
    assert [(message["role"], message["content"]) for message in told] == [("user", "Weather?"), ("user", "Well?")]
    assert [item["type"] for item in items] == (["message"] * 3 if is_conversation else [])


async def test_a_thread_is_a_conversation_with_the_same_end_of_its_id(w: World) -> None:
    spelled = [token_id for character in "Paris" for token_id in tokens(character)]
    w.decode.default = Script([*spelled, END_ID])
    assistants, caller = Assistants(w), Caller(w)
    thread, assistant = await assistants.thread("What is the capital of France?"), await assistants.assistant()
    await assistants.stream(thread, assistant)
    conversation = thread.replace("thread_", "conv_")
    response = await caller.create("hello", conversation=conversation)
    await assistants.post(f"/v1/threads/{thread}/messages", role="user", content="world")
    await assistants.stream(thread, assistant)

    said_there = [
        *(("user", "What is the capital of France?"), ("assistant", "Paris"), ("user", "hello")),
        *(("assistant", "Paris"), ("user", "world"), ("assistant", "Paris")),
    ]
    assert texts(await caller.items(conversation)) == await assistants.texts(thread) == said_there
    assert said(response) == "Paris"
    prompts = [list(request.prompt_token_ids) for request in w.decode.requests]
    for before, after in pairwise(prompts):
        known = [*before, *spelled]
        assert after[: len(known)] == known
    assert response["usage"]["thread_kv"] == "hit"


async def test_a_run_reads_words_of_the_developer_where_they_stand(w: World) -> None:
    assistants, caller = Assistants(w), Caller(w)
    conversation = await caller.conversation(
        user("hello"),
        {"type": "message", "role": "developer", "content": "Be short."},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be kind."}]},
        {"type": "function_call", "call_id": "call_a", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_a", "output": "x"},
        user("What is the capital of France?"),
    )
    thread = conversation.replace("conv_", "thread_")
    await assistants.stream(thread, await assistants.assistant(instructions="Be quick."))

    assert raw_tokenizer().decode(w.decode.requests[0].prompt_token_ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe quick.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (await assistants.texts(thread))[-1] == ("assistant", "Paris")


async def test_a_run_goes_on_from_what_a_response_read(w: World) -> None:
    spelled = [token_id for character in "Paris" for token_id in tokens(character)]
    w.decode.default = Script([*spelled, END_ID])
    assistants, caller = Assistants(w), Caller(w)
    conversation = await caller.conversation(user("hello"))
    await caller.create(
        [{"type": "message", "role": "developer", "content": "Be short."}, user("world")], conversation=conversation
    )
    thread = conversation.replace("conv_", "thread_")
    await assistants.stream(thread, await assistants.assistant())

    before, after = (list(request.prompt_token_ids) for request in w.decode.requests)
    assert after[: len(before) + len(spelled)] == [*before, *spelled]


async def test_words_of_the_developer_that_models_cannot_read_fail_the_run(w: World) -> None:
    assistants, caller = Assistants(w), Caller(w)
    picture = {"type": "input_image", "image_url": "https://example.invalid/a.png", "detail": "auto"}
    conversation = await caller.conversation({"type": "message", "role": "developer", "content": [picture]})
    thread = conversation.replace("conv_", "thread_")
    run = await assistants.run(thread, await assistants.assistant())
    ended = await assistants.settled(thread, run["id"])

    assert (ended["status"], ended["last_error"]["code"]) == ("failed", "invalid_prompt")
    assert "this model reads text only" in ended["last_error"]["message"]


async def test_a_conversation_has_one_response_or_run_at_a_time(w: World) -> None:
    w.decode.first = [Script(tokens("Paris"), hang_after=1)]
    caller, assistants = Caller(w), Assistants(w)
    conversation = await caller.conversation(user("hello"))
    thread = conversation.replace("conv_", "thread_")
    first = await caller.create("one", conversation=conversation, background=True)
    refused = [
        await w.post("/v1/responses", {"model": MODEL, "input": "two", "conversation": conversation}),
        await w.post(f"/v1/conversations/{conversation}/items", {"items": [user("x")]}),
    ]
    run = await w.post(f"/v1/threads/{thread}/runs", {"assistant_id": await assistants.assistant()})
    waiting = await assistants.run(thread, await assistants.assistant(), if_active="queue")
    await caller.post(f"/v1/responses/{first['id']}/cancel")
    ended = await assistants.settled(thread, waiting["id"])

    for each in refused:
        assert (refusal(each)[0], refusal(each)[1]["message"], refusal(each)[1]["code"]) == (
            400,
            LOCKED,
            "conversation_locked",
        )
    assert refusal(run)[1]["message"] == f"Thread {thread} already has an active run {first['id']}."
    assert ended["status"] == "completed"
    assert texts(await caller.items(conversation)) == [("user", "hello"), ("assistant", "Paris")]
    assert said(await caller.create("three", conversation=conversation)) == "Paris"


async def test_a_conversation_is_claimed_as_it_was_read(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(w)
    conversation = await caller.conversation(user("hello"))
    path = f"/v1/conversations/{conversation}/items"

    read = ContextReader.read

    async def meanwhile(reader: ContextReader, *args: Any) -> Any:
        context = await read(reader, *args)
        if len(await caller.items(conversation)) == 1:
            await caller.post(path, items=[user("world")])
        return context

    monkeypatch.setattr(ContextReader, "read", meanwhile)
    await caller.create("What?", conversation=conversation)
    [request] = w.decode.requests

    assert [words for _, words in texts(await caller.items(conversation))] == ["hello", "world", "What?", "Paris"]
    assert "world" in raw_tokenizer().decode(list(request.prompt_token_ids))


async def test_a_deleted_conversation_fails_its_response(w: World) -> None:
    w.decode.first = [Script(tokens("Paris"), hang_after=1)]
    caller = Caller(w)
    conversation = await caller.conversation()
    response = await caller.create(conversation=conversation, background=True)
    await w.decode.hanging.wait()
    await w.client.delete(f"/v1/conversations/{conversation}")
    w.decode.release.set()
    ended = await caller.settled(response["id"])

    events = await caller.events(response["id"])

    assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")
    assert shape(events)[-4:] == ["output_text.done", "content_part.done", "output_item.done", "failed"]


@pytest.mark.parametrize("num_items", [0, 21])
async def test_items_come_in_bounded_numbers(w: World, num_items: int) -> None:
    response = await w.post("/v1/conversations", {"items": [user("x")] * num_items})

    assert response.status_code == (400 if num_items else 200)


MARKED = "【0:0†source】 says so."


@pytest.mark.parametrize(
    ("changes", "is_shown_by_threads"),
    [
        ({}, True),
        ({"index": "x"}, False),
        ({"index": 1.5}, False),
        ({"index": True}, False),
        ({"index": [0]}, False),
        ({"index": None}, False),
        ({"index": -1}, False),
        ({"index": 2**62}, False),
        ({"index": 3}, False),
        ({"file_id": None}, False),
        ({"file_id": 5}, False),
        ({"text": "【0:0†source says so."}, False),
        ({"type": "url_citation"}, False),
    ],
)
async def test_annotations_of_any_form_are_kept_as_they_came(
    w: World, changes: dict[str, Any], is_shown_by_threads: bool
) -> None:
    caller = Caller(w)
    text = changes.get("text", MARKED)
    annotation = {"type": "file_citation", "index": 0, "file_id": "file-a", "filename": "file-a", **changes}
    given = {"role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": [annotation]}]}
    conversation = await caller.conversation(given)
    response = await caller.create([given, user("hello")], conversation=conversation)
    kept = [item for item in await caller.items(conversation) if item["role"] == "assistant"]

    assert response["status"] == "completed"
    assert [item["content"][0]["annotations"] for item in kept] == [[annotation], [annotation], []]
    shown = [("assistant", text)] * 2 if is_shown_by_threads else []
    listed = await Assistants(w).texts(conversation.replace("conv_", "thread_"))
    assert listed == [*shown, ("user", "hello"), ("assistant", "Paris")]
