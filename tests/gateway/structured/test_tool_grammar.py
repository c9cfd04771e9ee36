"""Grammars of tool calls, compiled as workers do: what each choice allows, in every format."""

import json
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from services.engine.grammar import Grammar
from services.engine.llguidance_grammar import LLGuidanceGrammars
from services.errors import InvalidRequest, TandemError
from services.gateway.structured.definition import HeldSchema
from services.gateway.structured.terminals import SpecialTokens
from services.gateway.structured.tool_grammar import tool_grammar
from services.gateway.tools.format import Tool, ToolFormat, ToolUse
from services.gateway.tools.formats import FORMATS, format_named
from tests.gateway.tools.samples import Call, calls_of, read, text_of, written
from tests.gateway.twins import END_ID, raw_tokenizer

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
    },
)
NOW = Tool("now", {"type": "object", "properties": {}})
PARIS = Call("get_weather", {"city": "Paris", "unit": "celsius"})
FORMAT_NAMES = [each.name for each in FORMATS]
SPECIAL = sorted({marker for each in FORMATS for marker in (*each.syntax.markers, *each.syntax.framing)})


def use(*, is_required: bool, max_calls: int = 16) -> ToolUse:
    return ToolUse(definitions=(), callable=(WEATHER, NOW), is_required=is_required, max_calls=max_calls)


class Judge:
    """Says what a grammar makes of a text; markers are special tokens of the vocabulary, or plain text."""

    def __init__(self, *, has_special: bool) -> None:
        self.tokenizer = raw_tokenizer()
        if has_special:
            self.tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in SPECIAL])
        self.size = self.tokenizer.get_vocab_size()
        self.grammars = LLGuidanceGrammars(self.tokenizer.to_str(), vocab_size=self.size, end_token_ids=(END_ID,))
        added = self.tokenizer.get_added_tokens_decoder()
        special = {token_id: token.content for token_id, token in added.items() if token.special}
        self.special = SpecialTokens(special, frozenset([END_ID]))

    def definition(self, tool_format: ToolFormat, use: ToolUse, answer: HeldSchema | None = None) -> str | None:
        return tool_grammar(tool_format.syntax, use, self.special, answer)

    def allowed(self, grammar: Grammar) -> set[int]:
        bits = np.unpackbits(np.frombuffer(grammar.allowed(), np.uint8), count=self.size, bitorder="little")
        return set(np.flatnonzero(bits).tolist())

    def takes(self, definition: str, text: str) -> bool:
        """Whether the text is a whole output."""
        at = self.grammars.compile(definition)
        try:
            at.consume(self.tokenizer.encode(text, add_special_tokens=False).ids)
        except TandemError:
            return False
        return END_ID in self.allowed(at)

    def drawn(self, definition: str, seed: int, max_tokens: int = 600) -> str:
        """Return an output of a model that knows nothing."""
        draw, at, ids = random.Random(seed), self.grammars.compile(definition), list[int]()
        while len(ids) < max_tokens:
            allowed = self.allowed(at)
            if allowed == {END_ID} or (END_ID in allowed and draw.random() < 0.3):
                return self.tokenizer.decode(ids, skip_special_tokens=False)
            ids.append(draw.choice(sorted(allowed - {END_ID})))
            at.consume(ids[-1:])
        raise AssertionError(f"no end: {self.tokenizer.decode(ids)}")


@cache
def judge(*, has_special: bool) -> Judge:
    return Judge(has_special=has_special)


@pytest.fixture(params=[True, False], ids=["special", "plain"])
def judged(request: pytest.FixtureRequest) -> Judge:
    return judge(has_special=bool(request.param))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_required_call_is_one_of_the_tools_with_arguments_of_its_schema(judged: Judge, name: str) -> None:
    tool_format = format_named(name)
    grammar = judged.definition(tool_format, use(is_required=True))
    assert grammar is not None
    for calls in ([PARIS], [Call("now", {})], [PARIS, Call("now", {})]):
        is_allowed = len(calls) <= tool_format.syntax.max_calls
        assert judged.takes(grammar, written(tool_format.syntax, calls)) == is_allowed
    for wrong in (Call("rm", {}), Call("get_weather", {}), Call("get_weather", {"city": "Paris", "x": 1})):
        assert not judged.takes(grammar, written(tool_format.syntax, [wrong]))
    assert not judged.takes(grammar, "Paris")
    assert not judged.takes(grammar, "")


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_whatever_a_model_draws_is_read_as_valid_calls(judged: Judge, name: str) -> None:
    tool_format = format_named(name)
    grammar = judged.definition(tool_format, use(is_required=True, max_calls=2))
    assert grammar is not None
    for seed in range(3):
        events = read(tool_format, judged.drawn(grammar, seed))
        calls = calls_of(events)
        assert 1 <= len(calls) <= 2
        assert not text_of(events).strip()
        for call in calls:
            assert call == Call("now", {}) or len(call.arguments["city"]) <= 6


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_an_answer_that_may_call_is_free_until_it_does(judged: Judge, name: str) -> None:
    tool_format = format_named(name)
    grammar = judged.definition(tool_format, use(is_required=False))
    if tool_format.syntax.trigger is None:
        assert grammar is None
        return
    assert grammar is not None
    call = written(tool_format.syntax, [PARIS])
    for text in ("", "Paris is <tool", "a\n\nb {[<|im_start|>] c", "<|endoftext|>"):
        assert judged.takes(grammar, text)
    for text in (call, f"Let me see.\n{call}"):
        assert judged.takes(grammar, text)
    many = written(tool_format.syntax, [PARIS, Call("now", {})])
    assert judged.takes(grammar, many) == (tool_format.syntax.max_calls > 1)
    for text in (
        written(tool_format.syntax, [Call("rm", {})]),
        f"{tool_format.syntax.trigger} is a marker",
        f"{call} x",
    ):
        assert not judged.takes(grammar, text)


def test_without_parallel_calls_there_is_one() -> None:
    tool_format = format_named("hermes")
    for is_required in (True, False):
        grammar = judge(has_special=False).definition(tool_format, use(is_required=is_required, max_calls=1))
        assert grammar is not None
        assert judge(has_special=False).takes(grammar, written(tool_format.syntax, [PARIS]))
        assert not judge(has_special=False).takes(grammar, written(tool_format.syntax, [PARIS, PARIS]))


def test_an_answer_with_a_schema_is_that_or_calls(judged: Judge) -> None:
    answer = HeldSchema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, strict=True)
    for each in FORMATS:
        if each.syntax.trigger is None:
            with pytest.raises(InvalidRequest, match="not both"):
                judged.definition(each, use(is_required=False), answer)
            continue
        grammar = judged.definition(each, use(is_required=False), answer)
        assert grammar is not None
        assert judged.takes(grammar, each.syntax.answer + '{"a": 1}')
        assert judged.takes(grammar, written(each.syntax, [PARIS]))
        assert not judged.takes(grammar, "Paris")


@pytest.mark.parametrize(
    ("parameters", "is_open"),
    [
        ({"properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {}}, False),
        ({}, True),
    ],
)
def test_arguments_that_nobody_named_are_not_allowed(parameters: dict[str, Any], is_open: bool) -> None:
    tools = ToolUse((), (Tool("now", {"type": "object", **parameters}),), is_required=True, max_calls=1)
    grammar = judge(has_special=False).definition(format_named("llama"), tools)
    assert grammar is not None
    assert judge(has_special=False).takes(grammar, '{"name": "now", "parameters": {"b": 1}}') == is_open


def test_markers_are_tokens_where_the_model_has_them() -> None:
    syntax = format_named("mistral").syntax
    for has_special in (True, False):
        definition = tool_grammar(syntax, use(is_required=True), judge(has_special=has_special).special)
        (lark, *_) = json.loads(definition or "")["grammars"]
        assert ('"[TOOL_CALLS]' in lark["lark_grammar"]) != has_special
