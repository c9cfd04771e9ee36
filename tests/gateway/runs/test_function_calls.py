"""Functions and formats with the models of the cluster: what workers are asked, and what is read of their answers."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.gateway.runs.model_turns import ModelTurns, TurnServices
from services.gateway.runs.turns import Called, HistoryEntry, TurnContext, TurnEnded, TurnEvent, TurnRequest, Written
from services.gateway.tools.formats import format_named
from tests.gateway.apis.stored import refusal, stored_world
from tests.gateway.runs.client import Caller, text_of
from tests.gateway.runs.pair import Pair, pair, until_hanging
from tests.gateway.runs.test_tools import ANSWERED, ASKED, called, outputs, together
from tests.gateway.tools.samples import Call, written
from tests.gateway.twins import END_ID, MODEL, Script, World, card, raw_tokenizer, tokens, world

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
ROOMY = card(context_length=8192)
PARIS, NOON = Call("get_weather", {"city": "Paris é"}), Call("now", {})
TOLD = [("get_weather", '{"city": "Paris é"}'), ("now", "{}")]


def output(*calls: Call, lead: str = "", name: str = "hermes", tail: str = "") -> list[int]:
    return [*tokens(lead + written(format_named(name).syntax, calls) + tail), END_ID]


def run_body(**changes: Any) -> dict[str, Any]:
    values = {
        "model": MODEL,
        "instructions": "Teach.",
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": "auto",
        "temperature": 0.0,
        "top_p": None,
        "max_prompt_tokens": None,
        "max_completion_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
    }
    return {**values, **changes}


def told(events: Sequence[TurnEvent]) -> tuple[str, list[list[str]]]:
    """Text and calls that events add up to."""
    text, calls = "", list[list[str]]()
    for part in (part for event in events for part in event.parts):
        match part:
            case Written(more):
                text += more
                assert not calls
            case Called(index, arguments, name):
                if name is not None:
                    assert index == len(calls)
                    calls.append([name, ""])
                calls[index][1] += arguments
    return text, calls


@asynccontextmanager
async def turning(**changes: Any) -> AsyncIterator[tuple[World, ModelTurns]]:
    """A gateway without a store, and its turns."""
    made: list[ModelTurns] = []

    def make(services: TurnServices) -> ModelTurns:
        made.append(ModelTurns(services))
        return made[-1]

    async with world(turns=make, **changes) as w:
        yield w, made[0]


async def turn(turns: ModelTurns, known: Sequence[int] = (), **changes: Any) -> list[TurnEvent]:
    """The events of one turn behind some known tokens."""
    history = [HistoryEntry("msg_1", ({"role": "user", "content": "hello"},))]
    plan = await turns.plan(TurnRequest(run_body(**changes), history))
    assert plan is not None
    plan = type(plan)(**orjson.loads(orjson.dumps(plan)))  # as another gateway reads it
    return [event async for event in turns.write(TurnContext("default", "run_1"), plan, known)]


ANSWERS = {
    "calls": ("hermes", output(PARIS, NOON)),
    "text and a call": ("hermes", output(NOON, lead="Paris is\n ")),
    "text": ("hermes", [*tokens("Paris <tool is é <tool_call>no"), END_ID]),
    "cut text": ("hermes", tokens("Paris é")[:-1]),
    "special tokens": ("mistral", []),
    "the whole answer": ("llama", output(NOON, name="llama", tail=" and more")),
    "one call too many": ("llama", output(NOON, name="llama", tail='; {"name": "now", "parameters": {}}')),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("step", [1, 3])
async def test_a_turn_goes_on_with_the_same_words_after_any_number_of_tokens(kind: str, step: int) -> None:
    name, ids = ANSWERS[kind]
    changes: dict[str, Any] = {"parallel_tool_calls": kind != "one call too many"}
    model = ROOMY
    if kind == "special tokens":
        raw = raw_tokenizer()
        raw.add_special_tokens(["[TOOL_CALLS]"])
        model = card(context_length=8192, tokenizer_json=raw.to_str(), vocab_size=raw.get_vocab_size())
        ids = [*raw.encode(written(format_named(name).syntax, [PARIS, NOON]), add_special_tokens=False).ids, END_ID]
    async with turning(model=model, tool_formats={MODEL: name}) as (w, turns):
        w.decode.default = Script(ids, step=step)
        whole = await turn(turns, **changes)
        ended = whole[-1]
        assert isinstance(ended, TurnEnded)
        text, calls = told(whole)
        assert [(call.name, call.arguments) for call in ended.calls] == [(name, args) for name, args in calls]
        spoken = [token_id for event in whole for token_id in event.token_ids]
        assert spoken == ids[: len(spoken)]
        ends = list(itertools.accumulate(len(event.token_ids) for event in whole[:-1]))
        for num_known in range(len(spoken) + 1) if step == 1 else [0, *ends]:
            before = [event for event, end in zip(whole[:-1], ends, strict=True) if end <= num_known]
            after = await turn(turns, spoken[:num_known], **changes)
            assert told([*before, *after]) == (text, calls), num_known
            assert isinstance(after[-1], TurnEnded) and after[-1].calls == ended.calls
            assert after[-1].num_end_tokens == ended.num_end_tokens
    assert (bool(text), len(calls)) == {
        "calls": (False, 2),
        "text and a call": (True, 1),
        "text": (True, 0),
        "cut text": (True, 0),
        "special tokens": (False, 2),
        "the whole answer": (False, 1),
        "one call too many": (False, 1),
    }[kind]
    assert ended.num_end_tokens == (0 if kind in ("cut text", "one call too many") else 1)


@pytest.mark.parametrize(
    ("choice", "names", "is_forced"),
    [
        ("auto", ["get_weather", "now"], False),
        ("required", ["get_weather", "now"], True),
        ({"type": "function", "function": {"name": "now"}}, ["now"], True),
    ],
)
async def test_workers_hold_a_turn_to_the_choice(choice: Any, names: list[str], is_forced: bool) -> None:
    async with turning(model=ROOMY) as (w, turns):
        w.decode.default = Script(output(NOON))
        await turn(turns, tool_choice=choice)
        await w.chat(
            messages=[{"role": "system", "content": "Teach."}, {"role": "user", "content": "hello"}],
            tools=TOOLS,
            tool_choice=choice,
        )
    own, chat = w.decode.requests
    lark = orjson.loads(own.sampling.grammar)["grammars"][0]["lark_grammar"]
    assert ("start: calls" in lark) == is_forced
    assert [f'"name\\": \\"{name}' in lark for name in ("get_weather", "now")] == [
        name in names for name in ("get_weather", "now")
    ]
    assert own.sampling.grammar == chat.sampling.grammar
    assert own.prompt_token_ids == chat.prompt_token_ids


@pytest.mark.parametrize(
    ("choice", "may_call"),
    [("required", True), ("auto", True), ({"type": "function", "function": {"name": "now"}}, False)],
)
async def test_behind_its_calls_a_run_may_call_again_unless_it_named_the_tool(choice: Any, may_call: bool) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    own = (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "now", "content": "12"},
    )
    history = [HistoryEntry("msg_1", ({"role": "user", "content": "hello"},)), HistoryEntry(None, own)]
    async with turning(model=ROOMY) as (_, turns):
        plan = await turns.plan(TurnRequest(run_body(tool_choice=choice), history, called=["now"]))
    assert plan is not None
    assert (plan.calls is not None) == may_call
    assert plan.calls is None or not plan.calls["is_required"]


async def test_a_run_that_may_not_call_is_told_of_tools_all_the_same() -> None:
    async with turning(model=ROOMY) as (w, turns):
        w.decode.default = Script(output(NOON))
        whole = await turn(turns, tool_choice="none")
        await turn(turns)
        await turn(turns, tools=[])
    none, auto, without = w.decode.requests
    assert none.prompt_token_ids == auto.prompt_token_ids != without.prompt_token_ids
    assert not none.sampling.HasField("grammar") and not without.sampling.HasField("grammar")
    assert told(whole) == (written(format_named("hermes").syntax, [NOON]), [])


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}, SCHEMA),
    ],
)
async def test_a_turn_is_held_to_its_response_format(wanted: dict[str, Any], schema: dict[str, Any]) -> None:
    answer = '{"city": "Paris"}'
    async with turning(model=ROOMY) as (w, turns):
        w.decode.default = Script([*tokens(answer), END_ID])
        whole = await turn(turns, tools=[], response_format=wanted)
        await w.chat(response_format=wanted)
    assert told(whole) == (answer, [])
    own, chat = w.decode.requests
    assert own.sampling.grammar == chat.sampling.grammar
    [grammar] = orjson.loads(own.sampling.grammar)["grammars"]
    assert {**grammar["json_schema"], "x-guidance": None} == {**schema, "x-guidance": None}


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with stored_world(tmp_path, model=ROOMY) as stored:
        yield stored


async def test_a_forced_run_calls_once_and_then_may_answer(w: World) -> None:
    caller = Caller(w)
    w.decode.first = [Script(output(PARIS, NOON)), Script([*tokens("Sunny."), END_ID])]
    thread = await caller.thread("And in Paris?")
    first = await caller.stream(thread, await caller.assistant(tools=TOOLS), tool_choice="required")
    run = first[-1].data
    ids = [call["id"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]]
    path = f"/v1/threads/{thread}/runs/{run['id']}/submit_tool_outputs"
    await caller.post(path, tool_outputs=outputs(ids))
    ended = await caller.settled(thread, run["id"])
    events = await caller.events(thread, run["id"])

    assert together(events) == [*ASKED, *ANSWERED]
    assert [(call["name"], call["arguments"]) for call in called(events)] == TOLD
    assert (ended["status"], text_of(events)) == ("completed", "Sunny.")
    forced, free = w.decode.requests
    assert "start: calls" in forced.sampling.grammar and "start: calls" not in free.sampling.grammar
    prompt = raw_tokenizer().decode(free.prompt_token_ids, skip_special_tokens=False)
    assert prompt.startswith(raw_tokenizer().decode(forced.prompt_token_ids, skip_special_tokens=False))
    assert '{"name": "get_weather", "arguments": {"city": "Paris é"}}' in prompt
    assert prompt.count("<tool_response>\noutput") == 2
    used = ended["usage"]
    assert used["prompt_tokens"] == len(forced.prompt_token_ids) + len(free.prompt_token_ids)
    assert used["completion_tokens"] == len(output(PARIS, NOON)) + len(tokens("Sunny.")) + 1


async def test_the_turn_behind_calls_begins_with_the_very_tokens_that_called(w: World) -> None:
    caller = Caller(w)
    letters = [token_id for each in written(format_named("hermes").syntax, [NOON]) for token_id in tokens(each)]
    assert letters != output(NOON)[:-1]  # as no tokenizer cuts it
    w.decode.first = [Script([*letters, END_ID]), Script([*letters, END_ID]), Script([*tokens("Noon."), END_ID])]
    assistant, thread = await caller.assistant(tools=TOOLS), await caller.thread("What time is it?")
    run = (await caller.stream(thread, assistant))[-1].data
    path = f"/v1/threads/{thread}/runs/{run['id']}"
    for _ in range(2):
        ids = [call["id"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]]
        await caller.post(f"{path}/submit_tool_outputs", tool_outputs=outputs(ids))
        run = await caller.settled(thread, run["id"])
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="Thanks")
    await caller.stream(thread, assistant)

    prompts = [list(request.prompt_token_ids) for request in w.decode.requests]
    for before, after, said in zip(prompts, prompts[1:], [letters, letters, tokens("Noon.")], strict=False):
        assert after[: len(before) + len(said) + 1] == [*before, *said, END_ID]


async def test_the_next_run_of_the_thread_begins_with_all_tokens_of_the_one_before(w: World) -> None:
    caller = Caller(w)
    w.decode.first = [Script(output(NOON)), Script([*tokens("Noon."), END_ID])]
    assistant, thread = await caller.assistant(tools=TOOLS), await caller.thread("What time is it?")
    run = (await caller.stream(thread, assistant))[-1].data
    ids = [call["id"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]]
    await caller.post(f"/v1/threads/{thread}/runs/{run['id']}/submit_tool_outputs", tool_outputs=outputs(ids))
    await caller.settled(thread, run["id"])
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="Thanks")
    await caller.stream(thread, assistant)

    _, answer, later = w.decode.requests
    known = [*answer.prompt_token_ids, *tokens("Noon.")]
    assert list(later.prompt_token_ids)[: len(known) + 1] == [*known, END_ID]


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(tmp_path, model=ROOMY) as gateways:
        yield gateways


NAMED = len(tokens('<tool_call>\n{"name": "get_weather"'))
"""Tokens until a call is known."""


@pytest.mark.parametrize("after", [0, 3, NAMED - 1, NAMED + 1, NAMED + 22, NAMED + 40, len(output(PARIS, NOON)) - 1])
async def test_calls_survive_their_gateway(both: Pair, after: int) -> None:
    ids = output(PARIS, NOON)
    both.first.decode.first = [Script(ids, hang_after=after)]
    both.second.decode.default = Script(ids)
    thread = await both.a.thread()
    run = (await both.a.run(thread, await both.a.assistant(tools=TOOLS)))["id"]
    await until_hanging(both.first, 1 if after > NAMED else 0)
    await both.first.gateway.jobs.close()
    await both.lapse()
    ended = await both.b.settled(thread, run)
    events = await both.b.events(thread, run)

    assert (ended["status"], together(events)) == ("requires_action", ASKED)
    assert [(call["name"], call["arguments"]) for call in called(events)] == TOLD
    waiting = ended["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [call["id"] for call in called(events)] == [call["id"] for call in waiting]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in waiting] == TOLD
    first, second = both.first.decode.requests[0], both.second.decode.requests[0]
    assert second.sampling.grammar == first.sampling.grammar
    resumed = list(second.resumed_output_token_ids)
    assert resumed == ids[: len(resumed)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [NOW, NOW]}, "tools[1].function.name"),
        (
            {"tools": [{"type": "file_search"}, {"type": "function", "function": {"name": "file_search"}}]},
            "tools[1].function.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "a" * 600}},
                }
            },
            "response_format.json_schema.schema",
        ),
    ],
)
async def test_a_run_that_asks_for_the_impossible_is_refused(w: World, body: dict[str, Any], param: str) -> None:
    caller = Caller(w)
    thread, assistant = await caller.thread(), await caller.assistant(tools=TOOLS)
    status, error = refusal(await w.post(f"/v1/threads/{thread}/runs", {"assistant_id": assistant, **body}))
    assert (status, error["param"]) == (400, param)


async def test_code_interpreter_fails_the_run_and_says_why(w: World) -> None:
    caller = Caller(w)
    tools = [{"type": "code_interpreter"}, *TOOLS]
    events = await caller.stream(await caller.thread(), await caller.assistant(tools=tools))
    error = events[-1].data["last_error"]
    assert (events[-1].name, error["code"]) == ("thread.run.failed", "server_error")
    assert "code_interpreter" in error["message"] and "sandbox" in error["message"]


async def test_a_format_that_cannot_have_tools_and_a_schema_says_so(tmp_path: Path) -> None:
    wanted = {"type": "json_object"}
    async with stored_world(tmp_path, model=ROOMY, tool_formats={MODEL: "llama"}) as w:
        caller = Caller(w)
        events = await caller.stream(await caller.thread(), await caller.assistant(tools=TOOLS), response_format=wanted)
    error = events[-1].data["last_error"]
    assert (error["code"], "not both" in error["message"]) == ("invalid_prompt", True)
