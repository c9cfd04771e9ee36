"""Outputs with calls as each format writes them, and what is in them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.gateway.tools.events import CallArguments, CallEvent, CallStarted, Text
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import NAME, CallSyntax, ParameterSyntax, ToolFormat

SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": ["integer", "null"]},
        },
    },
    "add": {"type": "object", "additionalProperties": {"type": ["array", "integer", "null"]}},
    "now": {"type": "object", "properties": {}},
}
NAMES = frozenset(SCHEMAS)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]


def written(syntax: CallSyntax, calls: Sequence[Call]) -> str:
    """Return calls as a model that was trained on the format writes them."""
    each = (
        syntax.prefix.replace(NAME, call.name) + _arguments(syntax.parameters, call) + syntax.suffix for call in calls
    )
    return syntax.opening + syntax.separator.join(each) + syntax.closing


def _arguments(syntax: ParameterSyntax | None, call: Call) -> str:
    if syntax is None:
        return json.dumps(call.arguments, ensure_ascii=False)
    return "".join(
        syntax.prefix.replace(NAME, name)
        + (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        + syntax.suffix
        + syntax.separator
        for name, value in call.arguments.items()
    )


def read(tool_format: ToolFormat, *pieces: str) -> list[CallEvent]:
    feed = Feed()
    reading = tool_format.read(feed, SCHEMAS)
    events: list[CallEvent] = []
    for piece in pieces:
        feed.add(piece)
        next(reading, None)
        events += feed.events()
    feed.is_over = True
    next(reading, None)
    return merged([*events, *feed.events()])


def merged(events: Sequence[CallEvent]) -> list[CallEvent]:
    """Join what belongs together, however it was cut."""
    result: list[CallEvent] = []
    for event in events:
        match (result[-1] if result else None, event):
            case (CallArguments(before), CallArguments(after)):
                result[-1] = CallArguments(before + after)
            case (Text(before, offset), Text(after, next_offset)) if next_offset == offset + len(before):
                result[-1] = Text(before + after, offset)
            case _:
                result.append(event)
    return result


def calls_of(events: Sequence[CallEvent]) -> list[Call]:
    calls, arguments = list[str](), list[str]()
    for event in events:
        match event:
            case CallStarted(name):
                calls.append(name)
                arguments.append("")
            case CallArguments(text):
                arguments[-1] += text
    return [Call(name, json.loads(text)) for name, text in zip(calls, arguments, strict=True)]


def text_of(events: Sequence[CallEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))
