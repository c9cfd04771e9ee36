"""Responses through one gateway: what comes back, in which order, and what is kept."""

from pathlib import Path
from typing import Any

import pytest

from services.gateway.responses.state import ResponseState
from services.gateway.runs.job import Job
from services.gateway.store.kinds import RESPONSE
from tests.gateway.apis.stored import refusal, stored_world
from tests.gateway.responses.client import WHOLE, Caller, said, shape, text_of
from tests.gateway.runs.fake_turns import FakeTurns, calls, text
from tests.gateway.twins import END_ID, MODEL, Script, World, tokens

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}


async def test_a_whole_answer(w: World) -> None:
    response = await Caller(w).create("What?", instructions="Be short.", metadata={"a": "b"}, max_output_tokens=50)

    assert (response["object"], response["status"], response["error"]) == ("response", "completed", None)
    assert (response["model"], response["metadata"], response["instructions"]) == (MODEL, {"a": "b"}, "Be short.")
    assert (response["store"], response["background"], response["truncation"]) == (True, False, "disabled")
    assert (response["temperature"], response["top_p"], response["tool_choice"]) == (0, 1.0, "auto")
    [item] = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Paris", "annotations": [], "logprobs": []}]
    prompt = len(w.decode.requests[0].prompt_token_ids)
    assert response["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": len(tokens("Paris")) + 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + len(tokens("Paris")) + 1,
    }
    assert await Caller(w).get(f"/v1/responses/{response['id']}") == response


async def test_a_stream_has_exactly_these_events(w: World) -> None:
    events = await Caller(w).stream()

    assert shape(events) == WHOLE
    assert [event.number for event in events] == list(range(len(events)))
    assert text_of(events) == said(events[-1].data["response"]) == "Paris"
    first, added = events[0].data["response"], events[2].data
    assert (first["status"], first["output"], first.get("usage")) == ("in_progress", [], None)
    assert (added["output_index"], added["item"]["content"], added["item"]["status"]) == (0, [], "in_progress")
    assert {event.data["item_id"] for event in events if "item_id" in event.data} == {added["item"]["id"]}
    assert await Caller(w).events(first["id"]) == events


async def test_an_answer_that_met_its_limit_is_incomplete(w: World) -> None:
    w.decode.default = Script(tokens("Paris is the capital of France") * 2, reason=2)
    events = await Caller(w).stream(max_output_tokens=16)
    response = events[-1].data["response"]

    assert (events[-1].name, response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


async def test_an_answer_without_text_is_a_message(w: World) -> None:
    w.decode.default = Script([END_ID])
    response = await Caller(w).create()

    assert (response["status"], said(response), len(response["output"])) == ("completed", "", 1)


async def test_calls_stream_exactly_these_events_and_their_outputs_are_gone_on_from(tmp_path: Path) -> None:
    turns = FakeTurns(calls(("weather", '{"city": "Paris"}'), ("time", "{}"), before="Let me see."), text("Sun", "ny."))
    async with stored_world(tmp_path, turns=lambda services: turns) as w:
        caller = Caller(w)
        events = await caller.stream(tools=[WEATHER])
        response = events[-1].data["response"]
        outputs = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": f"of {item['name']}"}
            for item in response["output"][1:]
        ]
        answer = await caller.create(outputs, previous_response_id=response["id"])

    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert shape(events) == [*WHOLE[:-1], *call, *call, "completed"]
    assert [event.number for event in events] == list(range(len(events)))
    asked = [(item["name"], item["arguments"], item["status"]) for item in response["output"][1:]]
    assert asked == [("weather", '{"city": "Paris"}', "completed"), ("time", "{}", "completed")]
    assert [item["id"][:3] for item in response["output"]] == ["msg", "fc_", "fc_"]
    assert said(answer) == "Sunny."
    told = [message for entry in turns.requests[1].history for message in entry.messages]
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "tool"]
    assert [call["function"]["name"] for call in told[1]["tool_calls"]] == ["weather", "time"]
    assert [message["content"] for message in told[1:]] == ["Let me see.", "of weather", "of time"]
    assert answer["previous_response_id"] == response["id"]
    assert turns.requests[0].run["tools"] == [
        {"type": "function", "function": {"name": "weather", "parameters": WEATHER["parameters"], "strict": False}}
    ]


async def test_what_was_said_before_is_gone_on_from_but_not_its_instructions(w: World) -> None:
    caller = Caller(w)
    first = await caller.create("What is the capital of France?", instructions="hello")
    second = await caller.create("What is?", previous_response_id=first["id"])
    third = await caller.create([{"role": "user", "content": "world"}], previous_response_id=second["id"])
    known = list(w.decode.requests[1].prompt_token_ids)

    assert len(w.decode.requests) == 3
    assert list(w.decode.requests[2].prompt_token_ids)[: len(known)] == known
    items = await caller.get(f"/v1/responses/{third['id']}/input_items")
    assert [item["content"][0]["text"] for item in items["data"]] == ["world"]


async def test_the_next_prompt_begins_with_the_ids_of_the_last_answer(w: World) -> None:
    spelled = [token_id for character in "Paris is the capital" for token_id in tokens(character)]
    w.decode.default = Script([*spelled, END_ID])
    caller = Caller(w)
    first = await caller.create("What is the capital of France?")
    second = await caller.create("hello again", previous_response_id=first["id"])
    known = [*w.decode.requests[0].prompt_token_ids, *spelled]

    assert list(w.decode.requests[1].prompt_token_ids)[: len(known)] == known
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == 16
    assert second["usage"]["thread_kv"] == "partial"


async def test_a_response_that_ended_keeps_its_answer_and_no_prompt(w: World) -> None:
    response = await Caller(w).create()
    objects = w.gateway.jobs._storage.of("default").objects
    state = ResponseState.from_bytes((await objects.get(RESPONSE.ref(response["id"]), with_private=True)).private)

    assert state.job.to_bytes() == Job().to_bytes()
    assert state.binding is not None
    assert state.binding.tail_ids == tuple(w.decode.requests[0].prompt_token_ids)


async def test_a_response_that_shall_not_be_stored_leaves_nothing_behind(w: World) -> None:
    caller = Caller(w)
    whole = await caller.create(store=False)
    streamed = (await caller.stream(store=False))[-1].data["response"]
    path = f"/v1/responses/{whole['id']}"

    assert said(whole) == said(streamed) == "Paris"
    assert refusal(await w.client.get(path))[1]["message"] == f"Response with id '{whole['id']}' not found."
    assert (await caller.refused(input="x", previous_response_id=whole["id"]))["code"] == "previous_response_not_found"
    state = w.gateway.jobs._storage._objects.state
    async with state.reaching() as client:
        keys: Any = await client.keys("*")
    left = [key for key in keys if whole["id"].encode() in key or streamed["id"].encode() in key]
    assert [key for key in left if b"gone:" not in key] == []


async def test_pages_of_input_items(w: World) -> None:
    caller = Caller(w)
    asked = [{"role": "user", "content": text} for text in ("hello", "world")]
    items = [asked[0], {"role": "assistant", "content": "Paris"}, {"role": "developer", "content": "what"}, asked[1]]
    response = await caller.create(items)
    path = f"/v1/responses/{response['id']}/input_items"
    whole = await caller.get(path, order="asc")
    page = await caller.get(path, order="asc", limit=2)
    rest = await caller.get(path, order="asc", after=page["last_id"])

    assert [item["role"] for item in whole["data"]] == ["user", "assistant", "developer", "user"]
    assert whole["data"] == [*page["data"], *rest["data"]]
    assert (page["has_more"], rest["has_more"], whole["first_id"]) == (True, False, whole["data"][0]["id"])
    assert (await caller.get(path))["data"] == whole["data"][::-1]


async def test_items_of_an_output_are_named_by_their_ids_as_long_as_there_is_the_response(w: World) -> None:
    caller = Caller(w)
    first = await caller.create("What is the capital of France?")
    asked = [{"type": "item_reference", "id": first["output"][0]["id"]}, {"role": "user", "content": "hello"}]
    second = await caller.create(asked)
    items = (await caller.get(f"/v1/responses/{second['id']}/input_items", order="asc"))["data"]
    await w.client.delete(f"/v1/responses/{first['id']}")
    refused = await caller.refused(input=asked)

    assert [(item["role"], item["content"][0]["text"]) for item in items] == [("assistant", "Paris"), ("user", "hello")]
    assert refused["message"] == f"Item with id '{first['output'][0]['id']}' not found."


async def test_a_response_goes_on_from_a_bounded_number_of_others(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.responses.history.MAX_ANCESTORS", 2)
    caller = Caller(w)
    last = await caller.create()
    for _ in range(2):
        last = await caller.create(previous_response_id=last["id"])
    refused = await caller.refused(input="hello", previous_response_id=last["id"])

    assert (refused["status"], refused["param"]) == (400, "previous_response_id")
    assert refused["message"].startswith("A response goes on from 2 others at most")


async def test_a_deleted_response_is_gone(w: World) -> None:
    caller = Caller(w)
    response = await caller.create()
    path = f"/v1/responses/{response['id']}"
    deleted = (await w.client.delete(path)).json()

    assert deleted == {"id": response["id"], "object": "response", "deleted": True}
    for gone in (await w.client.get(path), await w.client.delete(path), await w.post(f"{path}/cancel", {})):
        assert refusal(gone) == (
            404,
            {
                "message": f"Response with id '{response['id']}' not found.",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            },
        )


async def test_tokens_are_counted_as_they_would_be_used(w: World) -> None:
    caller = Caller(w)
    first = await caller.create("hello")
    body = {"model": MODEL, "input": "What?", "previous_response_id": first["id"], "instructions": "world"}
    counted = await caller.post("/v1/responses/input_tokens", **body)
    second = await caller.create("What?", previous_response_id=first["id"], instructions="world")

    assert counted == {"object": "response.input_tokens", "input_tokens": second["usage"]["input_tokens"]}


async def test_projects_do_not_see_each_other(w: World) -> None:
    response = await Caller(w).create()
    conversation = await Caller(w).conversation()
    key = await w.keys.create("other")
    await w.gateway.keys.refresh()
    headers = {"Authorization": f"Bearer {key}"}
    seen = [
        await w.client.get(f"/v1/responses/{response['id']}", headers=headers),
        await w.client.get(f"/v1/conversations/{conversation}", headers=headers),
        await w.post("/v1/responses", {"model": MODEL, "input": "x", "conversation": conversation}, headers=headers),
    ]

    assert [refused.status_code for refused in seen] == [404, 404, 404]


REFUSALS: list[tuple[dict[str, Any], str, str | None, str | None]] = [
    ({"input": "x", "model": None}, "Missing required parameter: 'model'.", "model", "missing_required_parameter"),
    (
        {},
        "One of 'input', 'previous_response_id', 'prompt' or 'conversation' must be provided.",
        "input",
        "missing_required_parameter",
    ),
    (
        {"input": "x", "background": True, "store": False},
        "background can only be used when `store` is true",
        "background",
        "invalid_value",
    ),
    (
        {"input": "x", "previous_response_id": "resp_a", "conversation": "conv_a"},
        "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Ensure you are only providing one "
        "of: 'previous_response_id' or 'conversation'.",
        None,
        "mutually_exclusive_parameters",
    ),
    (
        {"input": "x", "previous_response_id": "resp_none"},
        "Previous response with id 'resp_none' not found.",
        "previous_response_id",
        "previous_response_not_found",
    ),
    (
        {"input": "x", "conversation": "thread_a"},
        "Invalid 'conversation_id': 'thread_a'. Expected an ID that begins with 'conv'.",
        "conversation_id",
        "invalid_value",
    ),
    (
        {"input": "x", "max_output_tokens": 1},
        "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead.",
        "max_output_tokens",
        "integer_below_min_value",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "call_a", "output": "x"}]},
        "No tool call found for function call output with call_id call_a.",
        "input",
        "invalid_value",
    ),
    (
        {"input": [{"type": "function_call", "call_id": "call_a", "name": "f", "arguments": "{}"}]},
        "No tool output found for function call call_a.",
        "input",
        "invalid_value",
    ),
    (
        {"input": [{"type": "web_search_call", "id": "x"}]},
        "Invalid value: 'web_search_call'. Supported values are: 'message', 'function_call', 'function_call_output', "
        "'file_search_call', 'reasoning', 'compaction', and 'item_reference'.",
        "input[0].type",
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("body", "message", "param", "code"), REFUSALS)
async def test_refusals(w: World, body: dict[str, Any], message: str, param: str | None, code: str | None) -> None:
    refused = await Caller(w).refused(**body)

    assert (refused["status"], refused["message"]) == (400, message)
    assert (refused["param"], refused["code"]) == (param, code)
    assert w.decode.requests == []


async def test_input_that_does_not_fit_is_refused_unless_it_may_be_truncated(w: World) -> None:
    caller = Caller(w)
    long = [{"role": "user", "content": f"hello world {n} " * 20} for n in range(8)]
    refused = await caller.refused(input=long)
    cut = await caller.create(long, truncation="auto")

    assert (refused["status"], refused["code"]) == (400, "context_length_exceeded")
    assert cut["status"] == "completed"
    assert len(w.decode.requests) == 1
