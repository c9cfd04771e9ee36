"""Steps and messages of a run as the API shows them, and the deltas that lead there: pure functions.

The calls of a step are kept as ``id``, ``type``, and for functions ``name`` and ``arguments``, for searches of files
``file_search`` once they are over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from services.gateway.runs.lifecycle import Body
from services.gateway.store.kinds import Ref

RUN_LABEL = "run_id"
"""Label of the messages that a run wrote."""

TEXT_PARTS = ("text", "refusal")
"""Parts of a message's content that models of text can read."""

StepEnd = Literal["completed", "failed", "cancelled", "expired"]
IncompleteReason = Literal["max_tokens", "run_cancelled", "run_expired", "run_failed"]


def message_step(step: Ref, run: Body, message_id: str, now: int) -> Body:
    """Return the step that writes a message."""
    return _step(step, run, {"type": "message_creation", "message_creation": {"message_id": message_id}}, now)


def calls_step(step: Ref, run: Body, now: int) -> Body:
    """Return the step that calls tools, before the first call is known."""
    return _step(step, run, {"type": "tool_calls", "tool_calls": []}, now)


def with_calls(step: Body, calls: Sequence[Body], outputs: Mapping[str, str] | None = None) -> Body:
    """Return the step with its calls, and the outputs of functions by id once they are known."""
    shown = [_shown_call(call, outputs) for call in calls]
    return {**step, "step_details": {"type": "tool_calls", "tool_calls": shown}}


def _shown_call(call: Body, outputs: Mapping[str, str] | None) -> Body:
    if call["type"] == "file_search":
        return {"id": call["id"], "type": "file_search", "file_search": call["file_search"]}
    function = {
        "name": call["name"],
        "arguments": call["arguments"],
        "output": None if outputs is None else outputs[call["id"]],
    }
    return {"id": call["id"], "type": "function", "function": function}


def ended_step(step: Body, status: StepEnd, now: int, *, usage: Body | None, error: Body | None = None) -> Body:
    """Return a step that ended; ``error`` has ``code`` and ``message``."""
    return {**step, "status": status, f"{status}_at": now, "usage": usage, "last_error": error}


def new_message(message: Ref, run: Body, now: int) -> Body:
    """Return the message that a run begins to write; without content, as clients build it from the deltas."""
    return {
        "id": message.id,
        "object": "thread.message",
        "created_at": now,
        "thread_id": run["thread_id"],
        "status": "in_progress",
        "incomplete_details": None,
        "completed_at": None,
        "incomplete_at": None,
        "role": "assistant",
        "content": [],
        "assistant_id": run["assistant_id"],
        "run_id": run["id"],
        "attachments": [],
        "metadata": {},
    }


def completed_message(message: Body, text: str, annotations: Sequence[Body], now: int) -> Body:
    """Return a message that is whole."""
    return {**message, "status": "completed", "completed_at": now, "content": _content(text, annotations)}


def incomplete_message(
    message: Body, text: str, annotations: Sequence[Body], reason: IncompleteReason, now: int
) -> Body:
    """Return a message that keeps what was written of it."""
    ended = {"status": "incomplete", "incomplete_at": now, "incomplete_details": {"reason": reason}}
    return {**message, **ended, "content": _content(text, annotations)}


def text_delta(message_id: str, text: str, annotations: Sequence[Body] = ()) -> Body:
    """Return more text of a message, and annotations with the ``index`` that each has in it."""
    part = {"index": 0, "type": "text", "text": {"value": text, "annotations": list(annotations)}}
    return {"id": message_id, "object": "thread.message.delta", "delta": {"content": [part]}}


def calls_delta(step_id: str, calls: Sequence[Body]) -> Body:
    """Return more of a step's calls, as ``call_part`` makes them."""
    details = {"type": "tool_calls", "tool_calls": list(calls)}
    return {"id": step_id, "object": "thread.run.step.delta", "delta": {"step_details": details}}


def call_part(index: int, arguments: str, *, call_id: str | None = None, name: str | None = None) -> Body:
    """Return a part of one call of a function; clients join the texts of all parts, so id and name come once."""
    function: dict[str, Any] = {"arguments": arguments}
    part: dict[str, Any] = {"index": index, "type": "function", "function": function}
    if call_id is not None:
        part["id"] = call_id
        function |= {"name": name, "output": None}
    return part


def search_part(index: int, *, call_id: str | None = None, found: Body | None = None) -> Body:
    """Return the beginning of a search of files, or what it found."""
    part: dict[str, Any] = {"index": index, "type": "file_search", "file_search": found or {}}
    return part if call_id is None else {**part, "id": call_id}


def text_of(message: Body) -> str:
    """Return the text of a message, its parts one after the other; a refusal is one, too."""
    return "".join(
        part["text"]["value"] if part["type"] == "text" else part["refusal"]
        for part in message["content"]
        if part["type"] in TEXT_PARTS
    )


def _content(text: str, annotations: Sequence[Body]) -> list[Body]:
    return [{"type": "text", "text": {"value": text, "annotations": list(annotations)}}]


def _step(step: Ref, run: Body, details: Body, now: int) -> Body:
    return {
        "id": step.id,
        "object": "thread.run.step",
        "created_at": now,
        "run_id": run["id"],
        "assistant_id": run["assistant_id"],
        "thread_id": run["thread_id"],
        "type": details["type"],
        "status": "in_progress",
        "cancelled_at": None,
        "completed_at": None,
        "expired_at": None,
        "failed_at": None,
        "last_error": None,
        "step_details": details,
        "metadata": {},
        "usage": None,
    }
