"""Tools in chat completions: what workers are asked, and the exact form of calls, whole and streamed."""

import json
from typing import Any

import orjson
import pytest

from services.gateway.tools.formats import format_named
from tests.gateway.tools.samples import Call, written
from tests.gateway.twins import CHAT_ML, END_ID, Script, card, chat_body, events, raw_tokenizer, tokens, world

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
PARIS, NOON = Call("get_weather", {"city": "Paris"}), Call("now", {})


def script(*calls: Call, lead: str = "", name: str = "hermes", **values: Any) -> Script:
    return Script([*tokens(lead + written(format_named(name).syntax, calls)), END_ID], **values)


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


async def test_a_whole_answer_has_its_calls() -> None:
    async with world(model=ROOMY) as w:
        w.decode.default = script(PARIS, NOON)
        (choice,) = (await w.chat(tools=TOOLS)).json()["choices"]
    first, second = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "tool_calls"
    assert first == {
        "id": first["id"],
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    assert second["function"] == {"name": "now", "arguments": "{}"}
    assert first["id"] != second["id"]
    assert first["id"].startswith("call_")


async def test_text_before_calls_is_content() -> None:
    async with world(model=ROOMY) as w:
        w.decode.default = script(NOON, lead="Paris is\n")
        (choice,) = (await w.chat(tools=TOOLS)).json()["choices"]
    assert choice["message"]["content"] == "Paris is"
    assert len(choice["message"]["tool_calls"]) == 1


async def test_an_answer_without_calls_is_as_ever() -> None:
    async with world(model=ROOMY) as w:
        (choice,) = (await w.chat(tools=TOOLS)).json()["choices"]
        (without,) = (await w.chat()).json()["choices"]
    assert choice == without


async def test_a_stream_opens_each_call_once_and_goes_on_with_arguments() -> None:
    async with world(model=ROOMY) as w:
        w.decode.default = script(PARIS, NOON)
        chunks = events(await w.chat(tools=TOOLS, tool_choice="required", stream=True))
    opening, *parts, ending = deltas(chunks)
    assert opening == {"role": "assistant", "content": None, "refusal": None}
    assert ending == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]
    calls = [part["tool_calls"][0] for part in parts]
    assert all(part.keys() == {"tool_calls"} and len(part["tool_calls"]) == 1 for part in parts)
    begins = [call for call in calls if "id" in call]
    assert [(call["index"], call["type"], call["function"]) for call in begins] == [
        (0, "function", {"name": "get_weather", "arguments": ""}),
        (1, "function", {"name": "now", "arguments": ""}),
    ]
    rest = [call for call in calls if "id" not in call]
    assert all(call.keys() == {"index", "function"} and call["function"].keys() == {"arguments"} for call in rest)
    arguments = ["".join(call["function"]["arguments"] for call in rest if call["index"] == index) for index in (0, 1)]
    assert arguments == ['{"city": "Paris"}', "{}"]
    assert [call["index"] for call in calls] == sorted(call["index"] for call in calls)
    assert sum(call["index"] == 0 for call in rest) > 1


async def test_a_streamed_text_is_text_even_with_tools() -> None:
    async with world(model=ROOMY) as w:
        chunks = events(await w.chat(tools=TOOLS, stream=True))
    assert deltas(chunks)[0] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(delta.get("content", "") for delta in deltas(chunks)) == "Paris"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_call_that_max_tokens_cuts_ends_by_length() -> None:
    async with world(model=ROOMY) as w:
        w.decode.default = script(PARIS)
        body = {"tools": TOOLS, "max_tokens": len(w.decode.default.output) - 15}
        (choice,) = (await w.chat(**body)).json()["choices"]
        chunks = events(await w.chat(**body, stream=True))
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert '{"city": "Paris"}'.startswith(call["function"]["arguments"])


async def test_log_probabilities_are_those_of_the_text() -> None:
    async with world(model=ROOMY) as w:
        w.decode.default = script(NOON, lead="Paris is")
        (choice,) = (await w.chat(tools=TOOLS, logprobs=True)).json()["choices"]
    assert "".join(token["token"] for token in choice["logprobs"]["content"]).startswith("Paris is")
    assert "now" not in str(choice["logprobs"])


async def test_every_choice_has_calls_of_its_own() -> None:
    async with world(model=ROOMY) as w:
        w.decode.default = script(NOON)
        choices = (await w.chat(tools=TOOLS, n=2)).json()["choices"]
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in choices}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("choice", "names", "is_forced"),
    [
        (None, ["get_weather", "now"], False),
        ("auto", ["get_weather", "now"], False),
        ("required", ["get_weather", "now"], True),
        ({"type": "function", "function": {"name": "now"}}, ["now"], True),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]},
            },
            ["now"],
            True,
        ),
    ],
)
async def test_workers_hold_the_answer_to_the_choice(choice: Any, names: list[str], is_forced: bool) -> None:
    async with world(model=ROOMY) as w:
        w.decode.default = script(NOON)
        assert (await w.chat(tools=TOOLS, tool_choice=choice)).status_code == 200
    lark, *schemas = orjson.loads(w.decode.requests[0].sampling.grammar)["grammars"]
    assert ("start: calls" in lark["lark_grammar"]) == is_forced
    assert [f'"name\\": \\"{name}' in lark["lark_grammar"] for name in ("get_weather", "now")] == [
        name in names for name in ("get_weather", "now")
    ]
    assert len(schemas) == len(names)
    assert [schema["json_schema"]["x-guidance"]["lenient"] for schema in schemas] == [name == "now" for name in names]
    prompt = raw_tokenizer().decode(w.decode.requests[0].prompt_token_ids)
    assert '"get_weather"' in prompt and '"now"' in prompt
    assert "strict" not in prompt


async def test_none_means_no_tools_at_all() -> None:
    async with world(model=ROOMY) as w:
        await w.chat(tools=TOOLS, tool_choice="none")
        await w.chat(tools=[])
        await w.chat()
    first, second, third = w.decode.requests
    assert first.prompt_token_ids == second.prompt_token_ids == third.prompt_token_ids
    assert not first.sampling.HasField("grammar")


@pytest.mark.parametrize("stream", [True, False])
async def test_without_parallel_calls_the_second_one_ends_the_answer(stream: bool) -> None:
    async with world(model=card(context_length=8192, chat_template=CHAT_ML + "{{ tools }}<|python_tag|>")) as w:
        call = written(format_named("llama").syntax, [NOON])
        w.decode.default = Script([*tokens(f"{call}; {call}; {call}"), END_ID])
        response = await w.chat(tools=TOOLS, parallel_tool_calls=False, stream=stream)
    if stream:
        chunks = events(response)
        begun = [call for delta in deltas(chunks) for call in delta.get("tool_calls", ()) if "id" in call]
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = response.json()["choices"]
        begun, reason = choice["message"]["tool_calls"], choice["finish_reason"]
    assert (len(begun), reason) == (1, "tool_calls")
    assert w.decode.num_closed == 1


async def test_special_tokens_of_the_format_are_read() -> None:
    raw = raw_tokenizer()
    raw.add_special_tokens(["[TOOL_CALLS]"])
    model = card(
        context_length=8192,
        tokenizer_json=raw.to_str(),
        vocab_size=raw.get_vocab_size(),
        chat_template=CHAT_ML + "{{ tools | tojson if tools }}[TOOL_CALLS]",
    )
    async with world(model=model) as w:
        ids = raw.encode(written(format_named("mistral").syntax, [PARIS]), add_special_tokens=False).ids
        assert ids[0] == raw.token_to_id("[TOOL_CALLS]")
        w.decode.default = Script([*ids, END_ID])
        (choice,) = (await w.chat(tools=TOOLS)).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert f"<[{ids[0]}]>" in orjson.loads(w.decode.requests[0].sampling.grammar)["grammars"][0]["lark_grammar"]


async def test_a_setting_names_the_format_of_a_model() -> None:
    async with world(model=ROOMY, tool_formats={card().model_name: "llama"}) as w:
        w.decode.default = script(NOON, name="llama")
        (choice,) = (await w.chat(tools=TOOLS)).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "now"
    assert not w.decode.requests[0].sampling.HasField("grammar")


async def test_arguments_that_are_written_one_by_one_are_streamed_as_json() -> None:
    template = CHAT_ML + "{{ tools }}<tool_call>\n<function=f>\n<parameter=a>"
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}, "flag": {"type": "boolean"}}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"properties": properties}}}
    wanted = {"city": 'St. "Paul"\n', "days": 3, "flag": True}
    async with world(model=card(context_length=8192, chat_template=template)) as w:
        w.decode.default = script(Call("get_weather", wanted), NOON, lead="So:\n", name="qwen3_coder")
        chunks = events(await w.chat(tools=[tool, NOW], stream=True))
        (choice,) = (await w.chat(tools=[tool, NOW])).json()["choices"]
    parts = [part["tool_calls"][0] for part in deltas(chunks) if "tool_calls" in part]
    pieces = [part["function"]["arguments"] for part in parts if part["index"] == 0]
    assert json.loads("".join(pieces)) == wanted
    assert len(pieces) > 5
    assert "".join(part["function"]["arguments"] for part in parts if part["index"] == 1) == "{}"
    assert [json.loads(call["function"]["arguments"]) for call in choice["message"]["tool_calls"]] == [wanted, {}]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("So:", "tool_calls")
    lark, *schemas = orjson.loads(w.decode.requests[0].sampling.grammar)["grammars"]
    assert "<parameter=" in lark["lark_grammar"]
    assert [each["json_schema"]["type"] for each in schemas] == ["integer", "boolean"]


@pytest.mark.parametrize("content", [None, "", "Let me see."])
async def test_calls_and_results_are_accepted_in_the_history(content: str | None) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        *chat_body()["messages"],
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "noon"}]},
    ]
    async with world(model=ROOMY) as w:
        assert (await w.chat(messages=messages, tools=TOOLS)).status_code == 200
        assert (await w.chat(messages=messages)).status_code == 200
    prompt = raw_tokenizer().decode(w.decode.requests[1].prompt_token_ids)
    assert '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>' in prompt
    assert "<tool_response>\nnoon\n</tool_response>" in prompt
