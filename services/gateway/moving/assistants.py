"""Assistants, threads, messages, runs and steps, from the lines of an export to what makes them."""

from typing import Any

from services.errors import InvalidRequest
from services.gateway.apis.openai.assistants.assistants import assistant_json, named_fields
from services.gateway.apis.openai.assistants.messages import message_json
from services.gateway.apis.openai.assistants.run_bodies import run_json
from services.gateway.apis.openai.assistants.threads import thread_json
from services.gateway.apis.openai.assistants.tools import ToolResources, resources_json
from services.gateway.jobs.events import Body
from services.gateway.jobs.operations import RequireIdleThread
from services.gateway.moving.destination import Destination
from services.gateway.moving.found import step_notes
from services.gateway.moving.lines import Line
from services.gateway.moving.shapes import (
    KeptOfMessage,
    ShownAssistant,
    ShownMessage,
    ShownRun,
    ShownStep,
    ShownThread,
    named,
)
from services.gateway.runs.binding import Binding
from services.gateway.runs.documents import RUN_LABEL
from services.gateway.runs.job import Job
from services.gateway.store.changes import Create
from services.gateway.store.kinds import ASSISTANT, MESSAGE, RUN, STEP, THREAD
from services.gateway.web.validation import typed

_NO_ASSISTANT: Body = {
    "id": None,
    "model": "",
    "instructions": None,
    "tools": [],
    "temperature": 1.0,
    "top_p": 1.0,
    "response_format": "auto",
}
"""What a run has where it does not say what it has."""


async def restore_assistant(line: Line, into: Destination) -> bool:
    """Make an assistant."""
    shown = typed(ShownAssistant, line.body)
    ref = named(ASSISTANT, shown.id)
    _require_made(shown.tool_resources)
    return await into.make(Create(ref, assistant_json(ref, shown.created_at, named_fields(shown))))


async def restore_thread(line: Line, into: Destination) -> bool:
    """Make a thread, without what is in it."""
    shown = typed(ShownThread, line.body)
    ref = named(THREAD, shown.id)
    _require_made(shown.tool_resources)
    resources = resources_json(shown.tool_resources, is_lenient=False)
    return await into.make(Create(ref, thread_json(ref, shown.created_at, resources, shown.metadata or {})))


async def restore_message(line: Line, into: Destination) -> bool:
    """Make a message, the last one of its thread."""
    shown = typed(ShownMessage, line.body)
    ref, thread = named(MESSAGE, shown.id), named(THREAD, shown.thread_id, "thread_id")
    labels = {} if shown.run_id is None else {RUN_LABEL: named(RUN, shown.run_id, "run_id").id}
    plain = message_json(ref, thread, shown.created_at, shown.role, [])
    kept = typed(KeptOfMessage, line.kept)
    private = Binding.without_ids(kept.lead, kept.sources).to_bytes() if kept.lead or kept.sources else None
    given = {
        **shown.model_dump(exclude_unset=True),
        "content": [part.model_dump(exclude_none=True) for part in shown.content],
        "attachments": [each.model_dump() for each in shown.attachments or ()],
    }
    create = Create(ref, {**plain, **_given(given)}, thread, labels, private)
    return await into.make(create, after=[RequireIdleThread(thread)])


async def restore_run(line: Line, into: Destination) -> bool:
    """Make a run that has ended, without its events."""
    shown = typed(ShownRun, line.body)
    ref, thread = named(RUN, shown.id), named(THREAD, shown.thread_id, "thread_id")
    if shown.stream is not None:
        raise InvalidRequest("Unknown parameter: 'stream'.", param="stream")
    plain = run_json(ref, thread, _NO_ASSISTANT, shown, created=shown.created_at, expires=0)
    body = {**plain, "expires_at": None, **_given(shown.model_dump(exclude_unset=True, by_alias=True))}
    return await into.make(Create(ref, body, thread, private=Job().to_bytes()))


async def restore_step(line: Line, into: Destination) -> bool:
    """Make a step of a run."""
    shown = typed(ShownStep, line.body)
    ref, run = named(STEP, shown.id), named(RUN, shown.run_id, "run_id")
    given = shown.model_dump(exclude_unset=True)
    calls = given["step_details"].get("tool_calls", ())
    notes = step_notes(line.kept, [call["id"] for call in calls if call.get("file_search") is not None])
    unset = {name: None for name in ShownStep.model_fields if name != "expires_at"}
    return await into.make(Create(ref, {**unset, "metadata": {}, **_given(given)}, run, private=notes))


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an object; what has a default that is not null stays as that if the object has null."""
    return {name: value for name, value in fields.items() if value is not None or name not in _NEVER_NULL}


_NEVER_NULL = frozenset(
    {
        *("status", "attachments", "metadata", "model", "instructions", "tools", "temperature", "top_p"),
        *("truncation_strategy", "tool_choice", "parallel_tool_calls", "response_format"),
    }
)


def _require_made(resources: ToolResources | None) -> None:
    """Refuse an object that asks for new vector stores, as only bodies of requests do."""
    if resources is not None and resources.file_search is not None and resources.file_search.vector_stores:
        param = "tool_resources.file_search.vector_stores"
        raise InvalidRequest(f"'{param}' asks for new vector stores; name those that there are.", param=param)
