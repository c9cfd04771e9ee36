"""Grammars of tool calls: what an answer that has to call may be, and one that may call if it wants.

required   calls
auto       text | text trigger rest of calls           (once the trigger is there, only calls can follow)
auto, with a schema for the answer    answer | calls
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.errors import InvalidRequest
from services.gateway.structured.definition import HeldSchema
from services.gateway.tools.format import NAME, CallSyntax, Tool, ToolUse

_OPEN_OBJECTS = {"additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf", "allOf", "not", "if"}
"""Keywords by which an object says itself what else it may hold."""


@dataclass(frozen=True)
class SpecialTokens:
    """A model's tokens that are no text."""

    by_id: Mapping[int, str]
    end_ids: frozenset[int]


def tool_grammar(
    syntax: CallSyntax, use: ToolUse, tokens: SpecialTokens, answer: HeldSchema | None = None
) -> str | None:
    """Return the grammar of an answer with the tools of ``use``; ``answer`` describes its text if it calls none.

    None if the output is free: the model may call, and its format has no trigger.

    Raises:
        InvalidRequest: the format cannot be combined with a schema for the text.
    """
    writer = _Writer(syntax, tokens, min(use.max_calls, syntax.max_calls))
    rules = writer.calls(use.callable)
    named = {
        f"tool_{index}": HeldSchema(_closed(tool.parameters), strict=tool.strict)
        for index, tool in enumerate(use.callable)
    }
    if use.is_required:
        rules.append("start: calls")
    elif answer is not None:
        if syntax.trigger is None:
            raise InvalidRequest(
                "The tool calls of this model cannot be told from an answer in JSON: use 'tool_choice' or "
                "'response_format', not both.",
                param="response_format",
            )
        rules.append("start: @answer | calls")
        named["answer"] = answer
    elif syntax.trigger is not None:
        rules += writer.free_text(use.callable, syntax.trigger)
    else:
        return None
    lark = {"name": "answer_or_calls", "lark_grammar": "\n".join(("%llguidance {}", *rules))}
    return orjson.dumps(
        {"grammars": [lark, *({"name": name, "json_schema": held.guided} for name, held in named.items())]}
    ).decode()


class _Writer:
    """Writes rules in Lark, as llguidance reads it (docs/syntax.md there)."""

    def __init__(self, syntax: CallSyntax, tokens: SpecialTokens, max_calls: int) -> None:
        self._syntax = syntax
        self._tokens = tokens
        self._max_calls = max_calls
        self._ids = {text: token_id for token_id, text in tokens.by_id.items() if text in syntax.markers}

    def calls(self, tools: Sequence[Tool]) -> list[str]:
        """Return the rules of a whole list of calls and of each call."""
        syntax = self._syntax
        calls = (self._text(syntax.opening), "call", self._more_calls(), self._text(syntax.closing))
        return [
            f"calls: {_joined(*calls)}",
            f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}",
            *(f"call_{index}: {self._call(tool, index)}" for index, tool in enumerate(tools)),
        ]

    def free_text(self, tools: Sequence[Tool], trigger: str) -> list[str]:
        """Return the rules of text that ends, or becomes calls at the first ``trigger``."""
        syntax = self._syntax
        opening = syntax.opening.removeprefix(trigger)
        if syntax.opening:
            rest = _joined(self._text(opening), "call", self._more_calls(), self._text(syntax.closing))
            first: list[str] = []
        else:
            rest = _joined("first", self._more_calls(), self._text(syntax.closing))
            firsts = (self._call(tool, index, without=trigger) for index, tool in enumerate(tools))
            first = [f"first: {' | '.join(f'({each})' for each in firsts)}"]
        has_token = trigger in self._ids
        special = self._special_tokens()
        gap = f"(TEXT? {special})*" if special else ""
        begin = f"TEXT? {self._text(trigger)}" if has_token else "lead"
        return [
            f"start: {_joined(gap, f'(TEXT? | {begin} rest)')}",
            f"rest: {rest}",
            *first,
            *([] if has_token else [f"lead[lazy]: ANY {_quoted(trigger)}"]),
            r"TEXT: /(.|\n)+/",
            r"ANY: /(.|\n)*/",
        ]

    def _call(self, tool: Tool, index: int, *, without: str = "") -> str:
        prefix = self._syntax.prefix.replace(NAME, tool.name).removeprefix(without)
        return _joined(self._text(prefix), f"@tool_{index}", self._text(self._syntax.suffix))

    def _more_calls(self) -> str:
        if self._max_calls == 1:
            return ""
        return f"({_joined(self._text(self._syntax.separator), 'call')}){{0,{self._max_calls - 1}}}"

    def _text(self, text: str) -> str:
        """Return ``text`` as terminals; markers that are special tokens of the model are those tokens."""
        if not self._ids:
            return _quoted(text)
        pattern = "|".join(re.escape(marker) for marker in sorted(self._ids, key=len, reverse=True))
        parts = re.split(f"({pattern})", text)
        return _joined(*(f"<[{self._ids[part]}]>" if part in self._ids else _quoted(part) for part in parts))

    def _special_tokens(self) -> str:
        """Return the special tokens that free text may hold: all but those that mean something here."""
        taken = self._tokens.end_ids | set(self._ids.values())
        others = ",".join(_ranges(sorted(self._tokens.by_id.keys() - taken)))
        return f"<[{others}]>" if others else ""


def _closed(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of an object that has only the properties it names, unless it speaks of others itself.

    A small model that may add properties does.
    """
    if "properties" not in parameters or _OPEN_OBJECTS & parameters.keys():
        return parameters
    return {**parameters, "additionalProperties": False}


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _ranges(ids: Sequence[int]) -> Iterator[str]:
    """Yield ``first-last`` for each run of neighbours."""
    first = last = None
    for token_id in ids:
        if last is not None and token_id == last + 1:
            last = token_id
            continue
        if first is not None:
            yield f"{first}-{last}"
        first = last = token_id
    if first is not None:
        yield f"{first}-{last}"
