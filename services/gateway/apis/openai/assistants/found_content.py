"""The text that searches of files found, which steps show to those who ask for it with ``include[]``."""

from dataclasses import replace

import orjson
from starlette.requests import Request

from services.errors import InvalidRequest
from services.gateway.apis.openai.objects import included
from services.gateway.jobs.events import Body, LogEntry
from services.gateway.runs.search_calls import StepNotes
from services.gateway.store.kinds import STEP, Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Record
from services.gateway.web.problems import unsupported_value

FOUND_CONTENT = "step_details.tool_calls[*].file_search.results[*].content"
"""What ``include[]`` calls the text that searches of files found."""
_STEP_EVENTS, _RESULTS = "thread.run.step.", b'"results":[{'


def wants_content(request: Request) -> bool:
    """Return whether ``include[]`` asks for the text.

    Raises:
        InvalidRequest: it asks for something that steps do not have.
    """
    wanted = included(request)
    for name in sorted(wanted - {FOUND_CONTENT}):
        problem = unsupported_value(name, [FOUND_CONTENT])
        raise InvalidRequest(problem.message, param="include", code=problem.code)
    return bool(wanted)


def step_with_content(record: Record) -> Body:
    """Return a step, read with its private bytes, with the text."""
    return StepNotes.from_bytes(record.private).with_contents(record.body)


async def entry_with_content(objects: Objects, run: Ref, entry: LogEntry) -> LogEntry:
    """Return an event of a run with the text, if it tells what a search found.

    Raises:
        ObjectNotFound: the run was deleted.
        StateUnavailable: Redis cannot be reached.
    """
    if not (entry.name.startswith(_STEP_EVENTS) and _RESULTS in entry.data):
        return entry
    data = entry.event.data
    record = await objects.get(STEP.ref(data["id"]), parent=run, with_private=True)
    notes = StepNotes.from_bytes(record.private)
    if entry.event.is_delta:
        call_ids = [call["id"] for call in record.body["step_details"]["tool_calls"]]
        shown: Body = {**data, "delta": notes.with_contents(data["delta"], call_ids)}
    else:
        shown = notes.with_contents(data)
    return replace(entry, data=orjson.dumps(shown))
