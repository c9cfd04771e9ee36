"""Grammars of tool calls: what an answer that has to call may be, and one that may call if it wants.

required   calls
auto       text | text trigger rest of calls           (once the trigger is there, only calls can follow)
auto, with a schema for the answer    answer | calls
"""

from collections.abc import Mapping, Sequence

import orjson

from services.errors import InvalidRequest
from services.gateway.structured.arguments import ArgumentWriter
from services.gateway.structured.definition import HeldSchema, json_grammar
from services.gateway.structured.terminals import ANY, SpecialTokens, Terminals, joined, quoted
from services.gateway.tools.format import NAME, CallSyntax, ToolUse


def tool_grammar(
    syntax: CallSyntax, use: ToolUse, tokens: SpecialTokens, answer: HeldSchema | None = None
) -> str | None:
    """Return the grammar of an answer with the tools of ``use``; ``answer`` describes its text if it calls none.

    None if the output is free: the model may call, and its format has no trigger.

    Raises:
        InvalidRequest: the format cannot be combined with a schema for the text.
    """
    terminals = Terminals(syntax, tokens)
    arguments = ArgumentWriter(syntax.parameters, terminals)
    expressions = {tool.name: arguments.expression(tool, f"tool_{index}") for index, tool in enumerate(use.callable)}
    writer = _Writer(syntax, terminals, expressions, min(use.max_calls, syntax.max_calls))
    rules = [*writer.calls(), *arguments.rules]
    named = arguments.schemas
    if use.is_required:
        rules.append("start: calls")
    elif answer is not None:
        if syntax.trigger is None:
            raise InvalidRequest(
                "The tool calls of this model cannot be told from an answer in JSON: use 'tool_choice' or "
                "'response_format', not both.",
                param="response_format",
            )
        rules.append(f"start: {joined(terminals.text(syntax.answer), '@answer')} | calls")
        named["answer"] = answer
    elif syntax.trigger is not None:
        rules += writer.free_text(syntax.trigger)
    else:
        return None
    return _encoded(rules, named)


def answer_grammar(syntax: CallSyntax, tokens: SpecialTokens, answer: HeldSchema) -> str:
    """Return the grammar of an answer that calls nothing and has a schema."""
    if not syntax.answer:
        return json_grammar(answer)
    return _encoded([f"start: {Terminals(syntax, tokens).text(syntax.answer)} @answer"], {"answer": answer})


def _encoded(rules: Sequence[str], named: Mapping[str, HeldSchema]) -> str:
    lark = {"name": "answer_or_calls", "lark_grammar": "\n".join(("%llguidance {}", *rules))}
    return orjson.dumps(
        {"grammars": [lark, *({"name": name, "json_schema": held.guided} for name, held in named.items())]}
    ).decode()


class _Writer:
    """Writes the rules of calls with ``arguments`` by the names of the functions."""

    def __init__(self, syntax: CallSyntax, terminals: Terminals, arguments: Mapping[str, str], max_calls: int) -> None:
        self._syntax = syntax
        self._terminals = terminals
        self._arguments = arguments
        self._max_calls = max_calls

    def calls(self) -> list[str]:
        """Return the rules of a whole list of calls and of each call."""
        calls = (self._text(self._syntax.opening), "call", self._more_calls(), self._text(self._syntax.closing))
        return [
            f"calls: {joined(*calls)}",
            f"call: {' | '.join(f'call_{index}' for index in range(len(self._arguments)))}",
            *(f"call_{index}: {self._call(name)}" for index, name in enumerate(self._arguments)),
        ]

    def free_text(self, trigger: str) -> list[str]:
        """Return the rules of text that ends, or becomes calls at the first ``trigger``."""
        syntax = self._syntax
        opening = syntax.opening.partition(trigger)[2]
        if syntax.opening:
            rest = joined(self._text(opening), "call", self._more_calls(), self._text(syntax.closing))
            first: list[str] = []
        else:
            rest = joined("first", self._more_calls(), self._text(syntax.closing))
            firsts = (self._call(name, without=trigger) for name in self._arguments)
            first = [f"first: {' | '.join(f'({each})' for each in firsts)}"]
        has_token = self._terminals.is_token(trigger)
        special = self._terminals.others(without=syntax.content_opening)
        has_content = self._terminals.is_token(syntax.content_opening)
        text = f"TEXT? ({self._text(syntax.content_opening)} TEXT?)?" if has_content else "TEXT?"
        gap = f"({text} {special})*" if special else ""
        begin = f"TEXT? {self._text(trigger)}" if has_token else "lead"
        return [
            f"start: {joined(gap, f'({text} | {begin} rest)')}",
            f"rest: {rest}",
            *first,
            *([] if has_token else [f"lead[lazy]: ANY {quoted(trigger)}"]),
            r"TEXT: /(.|\n)+/",
            f"ANY: {ANY}",
        ]

    def _call(self, name: str, *, without: str = "") -> str:
        prefix = self._syntax.prefix.replace(NAME, name)
        prefix = prefix.partition(without)[2] if without else prefix
        return joined(self._text(prefix), self._arguments[name], self._text(self._syntax.suffix))

    def _more_calls(self) -> str:
        if self._max_calls == 1:
            return ""
        return f"({joined(self._text(self._syntax.separator), 'call')}){{0,{self._max_calls - 1}}}"

    def _text(self, text: str) -> str:
        return self._terminals.text(text)
