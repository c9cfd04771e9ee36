"""Renders a model's own chat template in a sandbox, to the letter of transformers' renderer."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, UndefinedError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from services.errors import ContextLengthExceeded, InvalidRequest, ModelRefused
from services.gateway.text.meter import Meter, RenderLimits, RenderTooLarge
from services.gateway.text.sandbox import Sandbox
from services.gateway.web.validation import MAX_DEPTH, shallow
from services.telemetry.clock import Clock

_MAX_TIME_FORMAT = 256
# What a template can raise on messages that it was not written for.
_TEMPLATE_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled chat template; ``render`` is CPU work and safe to call from any thread."""

    def __init__(self, source: str, variables: Mapping[str, str], clock: Clock, limits: RenderLimits) -> None:
        """Compile ``source``; ``variables`` are ``bos_token``, ``eos_token`` and the like.

        Raises:
            ModelRefused: the template is not valid Jinja.
        """
        self.source = source
        self._variables = dict(variables)
        self._meter = Meter(limits, clock)
        self._template, names = _compile(source, clock, self._meter)
        self.knows_tools = "tools" in names
        """Whether it tells the model of tools."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt text of a conversation.

        Raises:
            InvalidRequest: the template refuses these messages, or they cost too many steps.
            ContextLengthExceeded: the text would be longer than any prompt.
            DeadlineExceeded: it took too long.
        """
        variables = {
            "messages": [plain_message(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._rendered(variables)
        except RenderTooLarge as error:
            raise ContextLengthExceeded(f"These messages are too long: {error}.", param="messages") from error
        except _TEMPLATE_FAILURES as error:
            raise InvalidRequest(
                f"The chat template of this model refuses these messages: {error}", param="messages"
            ) from error

    def _rendered(self, variables: Mapping[str, Any]) -> str:
        try:
            return self._joined(variables)
        except (TypeError, UndefinedError):
            messages = variables["messages"]
            if not any("tool_calls" in message for message in messages):
                raise
            return self._joined({**variables, "messages": [_with_text_only(message) for message in messages]})

    def _joined(self, variables: Mapping[str, Any]) -> str:
        self._meter.start()
        return self._meter.joined(self._template.generate(**self._variables, **variables))


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as templates expect it: no None values, tool call arguments as objects."""
    kept = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in kept:
        kept["tool_calls"] = [_plain_tool_call(call) for call in kept["tool_calls"]]
    return kept


def _with_text_only(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with tool calls as templates expect it that put content and arguments together as texts."""
    if "tool_calls" not in message:
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": _json_text(call["function"].get("arguments", {}))}}
        for call in message["tool_calls"]
    ]
    return {"content": "", **message, "tool_calls": calls}


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = shallow(json.loads(function["arguments"] or "{}"))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(
                f"The arguments of a tool call must be a JSON object in a string, at most {MAX_DEPTH} levels deep.",
                param="messages",
            ) from error
    return {**call, "function": function}


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}``: marks assistant text for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str, clock: Clock, meter: Meter) -> tuple[Template, set[str]]:
    """Return the template and the names of its variables."""
    environment = Sandbox(meter, trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime(clock)
    try:
        names = find_undeclared_variables(environment.parse(source))
        return environment.from_string(environment.metered(source)), names
    except TemplateError as error:
        raise ModelRefused(f"The chat template of the model is not valid: {error}") from error


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime(clock: Clock) -> Callable[[str], str]:
    def strftime(format_text: str) -> str:
        if len(format_text) > _MAX_TIME_FORMAT:  # a width in it can make 256 times as much
            raise TemplateError("the format of a time is too long")
        return datetime.fromtimestamp(clock.wall()).strftime(format_text)

    return strftime
