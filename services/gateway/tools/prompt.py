"""Tells a model of its tools in plain messages, for templates that know none; the words are those of Qwen 2.5."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from services.gateway.tools.hermes import CLOSE, OPEN

Messages = Sequence[Mapping[str, Any]]

_SIGNATURES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within {open}{close} XML tags:
{open}
{{"name": <function-name>, "arguments": <args-json-object>}}
{close}"""


def told_in_messages(messages: Messages, tools: Messages) -> list[dict[str, Any]]:
    """Return ``messages`` without tools: told of in the system message, called and answered in plain content."""
    plain = [dict(message) for message in _plain_history(messages)]
    if tools:
        told = _SIGNATURES.format(tools="\n".join(map(_json, tools)), open=OPEN, close=CLOSE)
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] = f"{plain[0]['content']}\n\n{told}"
        else:
            plain.insert(0, {"role": "system", "content": told})
    return plain


def with_names(messages: Messages) -> list[dict[str, Any]]:
    """Return ``messages`` where results of tools also have the name of the function, which some templates want."""
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
    return [
        {**message, "name": names[message["tool_call_id"]]}
        if message["role"] == "tool" and not message.get("name") and message["tool_call_id"] in names
        else dict(message)
        for message in messages
    ]


def with_short_ids(messages: Messages, length: int) -> list[dict[str, Any]]:
    """Return ``messages`` with ids of calls that have ``length`` letters and digits; equal ones stay equal."""

    def short(call_id: str) -> str:
        is_short = len(call_id) == length and call_id.isalnum()
        return call_id if is_short else hashlib.sha256(call_id.encode()).hexdigest()[:length]

    shortened = []
    for message in messages:
        changed = dict(message)
        if message.get("tool_call_id"):
            changed["tool_call_id"] = short(message["tool_call_id"])
        if message.get("tool_calls"):
            changed["tool_calls"] = [{**call, "id": short(call["id"])} for call in message["tool_calls"]]
        shortened.append(changed)
    return shortened


def _plain_history(messages: Messages) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = []
    for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
        if is_result:
            results = (f"<tool_response>\n{message['content']}\n</tool_response>" for message in group)
            plain.append({"role": "user", "content": "\n".join(results)})
        else:
            plain += map(_plain_message, group)
    return plain


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    lines = [message.get("content") or "", *(_plain_call(call["function"]) for call in calls)]
    return {**kept, "content": "\n".join(filter(None, lines))}


def _plain_call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"].strip() or "{}"
    return f'{OPEN}\n{{"name": {_json(function["name"])}, "arguments": {arguments}}}\n{CLOSE}'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
