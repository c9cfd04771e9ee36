"""Functions and formats with the models of the cluster: what workers are asked, and what is read of their answers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.gateway.apis.stored import stored_world
from tests.gateway.responses.client import Caller, Seen, said, shape
from tests.gateway.responses.test_durability import a, b
from tests.gateway.runs.pair import Pair, pair
from tests.gateway.runs.test_function_calls import NOON, PARIS, ROOMY, output
from tests.gateway.twins import END_ID, Script, World, raw_tokenizer, tokens

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
NOW = {"type": "function", "name": "now", "parameters": None}
TOOLS = [WEATHER, NOW]
SEARCH = {"type": "file_search", "vector_store_ids": ["vs_a"]}
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with stored_world(tmp_path, model=ROOMY) as stored:
        yield stored


def prompt_of(w: World, place: int = -1) -> str:
    ids = w.decode.requests[place].prompt_token_ids
    return str(raw_tokenizer().decode(list(ids), skip_special_tokens=False))


def called(response: Any) -> list[tuple[str, str]]:
    return [(item["name"], item["arguments"]) for item in response["output"] if item["type"] == "function_call"]


def arguments(events: list[Seen], item_id: str) -> str:
    deltas = [event.data for event in events if event.name == "response.function_call_arguments.delta"]
    return "".join(delta["delta"] for delta in deltas if delta["item_id"] == item_id)


async def test_calls_are_read_told_and_gone_on_from(w: World) -> None:
    w.decode.first = [Script(output(PARIS, NOON)), Script([*tokens("Sunny."), END_ID])]
    caller = Caller(w)
    events = await caller.stream("And in Paris?", tools=TOOLS)
    response = events[-1].data["response"]
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": f"output of {item['name']}"}
        for item in response["output"]
    ]
    answer = await caller.create(outputs, previous_response_id=response["id"], tools=TOOLS)

    assert shape(events) == ["created", "in_progress", *CALL, *CALL, "completed"]
    assert called(response) == [("get_weather", '{"city": "Paris é"}'), ("now", "{}")]
    for item in response["output"]:
        assert arguments(events, item["id"]) == item["arguments"]
    assert said(answer) == "Sunny."
    assert prompt_of(w).startswith(prompt_of(w, 0))
    assert '{"name": "get_weather", "arguments": {"city": "Paris é"}}' in prompt_of(w)
    assert prompt_of(w).count("<tool_response>\noutput of") == 2
    assert response["usage"]["output_tokens"] == len(output(PARIS, NOON))


@pytest.mark.parametrize(
    ("choice", "names", "is_forced"),
    [
        ("auto", ["get_weather", "now"], False),
        ("required", ["get_weather", "now"], True),
        ({"type": "function", "name": "now"}, ["now"], True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}, ["now"], True),
    ],
)
async def test_workers_hold_an_answer_to_the_choice(w: World, choice: Any, names: list[str], is_forced: bool) -> None:
    w.decode.default = Script(output(NOON))
    response = await Caller(w).create(tools=TOOLS, tool_choice=choice)

    lark = orjson.loads(w.decode.requests[0].sampling.grammar)["grammars"][0]["lark_grammar"]
    assert ("start: calls" in lark) == is_forced
    assert [name for name in ("get_weather", "now") if f'"name\\": \\"{name}' in lark] == names
    assert (called(response), response["tool_choice"]) == ([("now", "{}")], choice)


async def test_what_is_cut_before_a_call_has_a_name_still_adds_its_input_to_the_conversation(w: World) -> None:
    w.decode.default = Script(tokens('<tool_call>\n{"name": "get_w'), reason=2)
    caller = Caller(w)
    conversation = await caller.conversation()
    response = await caller.create(
        "hello", tools=TOOLS, tool_choice="required", conversation=conversation, max_output_tokens=16
    )

    assert (response["status"], response["output"]) == ("incomplete", [])
    assert [item["content"][0]["text"] for item in await caller.items(conversation)] == ["hello"]


@pytest.mark.parametrize(("strict", "is_held"), [({}, False), ({"strict": None}, False), ({"strict": True}, True)])
async def test_calls_are_held_to_a_schema_only_if_the_client_says_so(
    w: World, strict: dict[str, Any], is_held: bool
) -> None:
    w.decode.default = Script(output(NOON))
    parameters = {"type": "object", "properties": {"days": {"type": "array", "uniqueItems": True}}}
    response = await Caller(w).create(tools=[{**NOW, "parameters": parameters, **strict}])

    [_, schema] = orjson.loads(w.decode.requests[0].sampling.grammar)["grammars"]
    assert schema["json_schema"]["x-guidance"]["lenient"] != is_held
    assert [tool["strict"] for tool in response["tools"]] == [is_held]


async def test_an_answer_is_held_to_its_schema(w: World) -> None:
    w.decode.default = Script([*tokens('{"city": "Paris"}'), END_ID])
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    wanted = {"type": "json_schema", "name": "city", "schema": schema, "strict": True}
    response = await Caller(w).create(text={"format": wanted})

    [grammar] = orjson.loads(w.decode.requests[0].sampling.grammar)["grammars"]
    assert {**grammar["json_schema"], "x-guidance": None} == {**schema, "x-guidance": None}
    assert (said(response), response["text"]["format"]) == ('{"city": "Paris"}', wanted)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].vector_store_ids"),
        (
            {"tools": [{"type": "file_search", "vector_store_ids": ["vs_a"], "filters": {"key": "a"}}]},
            "tools[0].filters.type",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "other"}}}, "text.format.type"),
    ],
)
async def test_forms_that_cannot_be_are_refused(w: World, body: dict[str, Any], param: str) -> None:
    refused = await Caller(w).refused(input="x", **body)

    assert (refused["status"], refused["param"]) == (400, param)
    assert w.decode.requests == []


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(tmp_path, model=ROOMY, run_flush_s=0) as gateways:
        yield gateways


@pytest.mark.parametrize("after", [4, 17, 30, len(output(PARIS, NOON)) - 1])
async def test_a_call_goes_on_on_another_gateway(both: Pair, after: int) -> None:
    both.first.decode.first = [Script(output(PARIS, NOON), hang_after=after)]
    both.second.decode.default = Script(output(PARIS, NOON))
    response = await a(both).create(background=True, tools=TOOLS)
    await both.first.decode.hanging.wait()
    await both.first.gateway.jobs.close()
    await both.lapse()
    ended = await b(both).settled(response["id"])
    events = await b(both).events(response["id"])

    assert called(ended) == [("get_weather", '{"city": "Paris é"}'), ("now", "{}")]
    assert shape(events) == ["created", "queued", "in_progress", *CALL, *CALL, "completed"]
    assert [event.number for event in events] == list(range(len(events)))
    for item in ended["output"]:
        assert arguments(events, item["id"]) == item["arguments"]
