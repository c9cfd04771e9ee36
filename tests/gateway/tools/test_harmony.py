"""Harmony: what of an answer on channels is shown, hidden, and called."""

import json

import pytest

from services.gateway.tools.events import CallArguments, CallStarted, Text
from services.gateway.tools.formats import format_named
from tests.gateway.structured.test_tool_grammar import judge, use
from tests.gateway.tools.samples import Call, calls_of, read, text_of
from tests.gateway.twins import CHAT_ML, END_ID, Script, card, events, raw_tokenizer, world

HARMONY = format_named("harmony")
THOUGHTS = "<|channel|>analysis<|message|>I need to=functions.now, or not.<|end|>"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}}
MARKERS = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"]


@pytest.mark.parametrize(
    ("output", "calls", "text"),
    [
        ("<|channel|>final<|message|>Paris.", [], "Paris."),
        (f"{THOUGHTS}<|start|>assistant<|channel|>final<|message|>Paris.", [], "Paris."),
        (THOUGHTS, [], ""),
        ("<|channel|>analysis<|message|>I am cut", [], ""),
        ("<|channel|>ana", [], ""),
        (CALL, [Call("add", {"a": 1})], ""),
        (f"{THOUGHTS}<|start|>assistant{CALL}", [Call("add", {"a": 1})], ""),
        (
            f'{THOUGHTS}<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{{"a": 1}}',
            [Call("add", {"a": 1})],
            "",
        ),
        (' to=functions.add <|constrain|>json<|message|>{"a": 1}', [Call("add", {"a": 1})], ""),
        ("<|channel|>commentary to=functions.now<|message|>", [Call("now", {})], ""),
        (
            f"<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant{CALL}",
            [Call("add", {"a": 1})],
            "I look it up.",
        ),
        ("<|channel|>commentary to=functions.rm json<|message|>{}", [], "{}"),
        ("Paris is to=functions.add, no call.", [], "Paris is to=functions.add, no call."),
    ],
)
def test_thoughts_are_hidden_and_answers_shown(output: str, calls: list[Call], text: str) -> None:
    found = read(HARMONY, output)
    assert found == read(HARMONY, *output)
    started = [event.name for event in found if isinstance(event, CallStarted)]
    assert (started, text_of(found)) == ([call.name for call in calls], text)
    if any(isinstance(event, CallArguments) for event in found):
        assert calls_of(found) == calls


def test_an_answer_is_shown_as_it_comes() -> None:
    shown = read(HARMONY, "<|channel|>final<|message|>Par", "is")
    assert shown == [Text("Paris", len("<|channel|>final<|message|>"))]


@pytest.mark.parametrize("has_special", [True, False])
def test_a_model_may_think_before_it_calls(has_special: bool) -> None:
    judged = judge(has_special=has_special)
    grammar = judged.definition(HARMONY, use(is_required=False))
    assert grammar is not None
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
    thoughts = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
    assert judged.takes(grammar, thoughts + call)
    assert judged.takes(grammar, f"{thoughts}<|channel|>final<|message|>Paris")
    assert not judged.takes(grammar, thoughts + call.replace("city", "town"))


def test_a_model_may_think_of_calls_that_it_does_not_make() -> None:
    judged = judge(has_special=True)
    grammar = judged.definition(HARMONY, use(is_required=False))
    assert grammar is not None
    thoughts = "<|channel|>analysis<|message|>Should it go to=functions.now? No.<|end|><|start|>assistant"
    assert judged.takes(grammar, f"{thoughts}<|channel|>final<|message|>It is to=functions.now")
    assert judged.takes(grammar, f"{thoughts}<|channel|>commentary to=functions.now <|constrain|>json<|message|>{{}}")
    assert not judged.takes(grammar, f"{thoughts}<|channel|>commentary to=functions.now or not<|message|>{{}}")


@pytest.mark.parametrize("has_tools", [True, False])
async def test_clients_get_the_answer_and_its_calls_alone(has_tools: bool) -> None:
    raw = raw_tokenizer()
    raw.add_special_tokens(MARKERS)
    model = card(
        context_length=8192,
        tokenizer_json=raw.to_str(),
        vocab_size=raw.get_vocab_size(),
        chat_template=CHAT_ML + "{{ tools | tojson if tools }}{# <|channel|><|message|> #}",
    )
    ending = CALL if has_tools else "<|channel|>final<|message|>Paris STOP and more"
    output = raw.encode(f"{THOUGHTS}<|start|>assistant{ending}", add_special_tokens=False).ids
    tools = {"tools": [TOOL]} if has_tools else {}
    async with world(model=model) as w:
        w.decode.default = Script([*output, END_ID])
        (choice,) = (await w.chat(stop=[" STOP"], logprobs=True, **tools)).json()["choices"]
        chunks = events(await w.chat(stop=[" STOP"], stream=True, **tools))
    content = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    if has_tools:
        (call,) = choice["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("add", {"a": 1})
        assert (choice["message"]["content"], content, choice["finish_reason"]) == (None, "", "tool_calls")
    else:
        assert (choice["message"]["content"], content, choice["finish_reason"]) == ("Paris", "Paris", "stop")
        assert "analysis" not in "".join(token["token"] for token in choice["logprobs"]["content"])


async def test_an_answer_with_a_schema_is_on_its_channel() -> None:
    template = CHAT_ML + "{# <|channel|><|message|> #}"
    output = raw_tokenizer().encode('<|channel|>final<|message|>{"a": 1}', add_special_tokens=False).ids
    async with world(model=card(context_length=8192, chat_template=template)) as w:
        w.decode.default = Script([*output, END_ID])
        schema = {"name": "a", "schema": {"type": "object"}}
        response = await w.chat(response_format={"type": "json_schema", "json_schema": schema})
    assert response.json()["choices"][0]["message"]["content"] == '{"a": 1}'
    lark, answer = json.loads(w.decode.requests[0].sampling.grammar)["grammars"]
    assert 'start: "<|channel|>final<|message|>" @answer' in lark["lark_grammar"]
    assert answer["json_schema"]["type"] == "object"
