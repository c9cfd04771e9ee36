"""What a request says of the form of its answer: the tools that it may or must call, and the schema of its text."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.gateway.models import ServedModel
from services.gateway.structured.definition import HeldSchema
from services.gateway.structured.response_format import answer_schema
from services.gateway.structured.terminals import SpecialTokens
from services.gateway.structured.tool_grammar import answer_grammar, tool_grammar
from services.gateway.tools.format import CallRules, ToolUse
from services.gateway.tools.use import Definition, tool_use


@dataclass(frozen=True)
class AnswerForm:
    """The same for whoever asks: chat completions, runs."""

    tools: ToolUse | None = None
    schema: HeldSchema | None = None

    @property
    def definitions(self) -> Sequence[Definition]:
        """The tools that the prompt tells of."""
        return () if self.tools is None else self.tools.definitions

    def calls(self, model: ServedModel) -> CallRules | None:
        """Return what of the output is a call; None if all of it is text."""
        if self.tools is not None and self.tools.callable:
            return self.tools.rules
        return CallRules.of_none() if model.tool_format.syntax.framing else None

    def without_calls(self, names: Collection[str]) -> "AnswerForm":
        """Return the form of an answer that calls none of ``names``, of which the prompt tells all the same."""
        if self.tools is None:
            return self
        callable_tools = [tool for tool in self.tools.callable if tool.name not in names]
        is_required = self.tools.is_required and bool(callable_tools)
        return replace(self, tools=replace(self.tools, callable=callable_tools, is_required=is_required))

    def grammar(self, model: ServedModel) -> str | None:
        """Return what the whole output is held to; None if it is free.

        Raises:
            InvalidRequest: the model cannot have tools and a schema at once.
        """
        syntax = model.tool_format.syntax
        tokens = SpecialTokens(model.tokenizer.special, frozenset(model.card.eos_token_ids))
        if self.tools is not None and self.tools.callable:
            return tool_grammar(syntax, self.tools, tokens, self.schema)
        return None if self.schema is None else answer_grammar(syntax, tokens, self.schema)


def answer_form(
    tools: Sequence[Definition] | None,
    choice: Any,
    parallel: bool | None,
    response_format: Mapping[str, Any] | None,
) -> AnswerForm:
    """Return the form that the fields of a request ask for, all of them as chat completions have them.

    Raises:
        InvalidRequest: a field is not what it should be, or a schema is out of bounds; ``param`` names it.
    """
    return AnswerForm(tool_use(tools, choice, parallel), answer_schema(response_format))
