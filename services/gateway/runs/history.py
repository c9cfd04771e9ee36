"""Reads a thread as a conversation: its messages, and what the present run has done so far."""

from collections.abc import Iterable, Sequence

from services.errors import InvalidRequest
from services.gateway.runs.binding import Binding
from services.gateway.runs.documents import step_calls, text_of
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.turns import ChatMessage, HistoryEntry
from services.gateway.store.kinds import MESSAGE, STEP, Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Query, Record

_PAGE = 100


async def read_history(objects: Objects, run: Ref, thread: Ref, *, max_characters: int) -> list[HistoryEntry]:
    """Return the thread in its order; what lies further back than ``max_characters`` is left out.

    Raises:
        InvalidRequest: a message has something that models of text cannot read.
        ObjectNotFound: the thread was deleted.
    """
    entries, num_characters, after = [], 0, None
    while num_characters <= max_characters:
        page = await objects.list(Query(MESSAGE, thread, limit=_PAGE, after=after, with_private=True))
        for record in page.records:
            if record.body["run_id"] != run.id and record.body["content"]:
                entries.append(message_entry(record))
                num_characters += len(text_of(record.body))
        if not page.has_more:
            break
        after = page.records[-1].ref.id
    own = await own_messages(objects, run, thread)
    return [*reversed(entries), *([HistoryEntry(None, tuple(own))] if own else [])]


async def own_messages(objects: Objects, run: Ref, thread: Ref) -> list[ChatMessage]:
    """Return what a run has said, called and been answered so far."""
    messages: list[ChatMessage] = []
    for step in await _steps(objects, run):
        if step["status"] != "completed":
            continue
        if step["type"] == "message_creation":
            ref = MESSAGE.ref(step["step_details"]["message_creation"]["message_id"])
            record = await objects.get(ref, parent=thread)
            messages.append({"role": "assistant", "content": text_of(record.body)})
        else:
            messages += _call_messages(step)
    return messages


async def _steps(objects: Objects, run: Ref) -> list[Body]:
    steps: list[Body] = []
    after = None
    while True:
        page = await objects.list(Query(STEP, run, limit=_PAGE, order="asc", after=after))
        steps += [record.body for record in page.records]
        if not page.has_more:
            return steps
        after = page.records[-1].ref.id


def message_entry(record: Record) -> HistoryEntry:
    """Return a message of a thread as a part of a conversation.

    Raises:
        InvalidRequest: it has something that models of text cannot read.
    """
    for part in record.body["content"]:
        if part["type"] != "text":
            raise InvalidRequest(
                f"The message '{record.ref.id}' has content of type '{part['type']}', and this model reads text only."
            )
    binding = Binding.from_bytes(record.private) if record.private is not None else None
    message = {"role": record.body["role"], "content": text_of(record.body)}
    return HistoryEntry(record.ref.id, (*(binding.lead if binding is not None else ()), message), binding)


def _call_messages(step: Body) -> Sequence[ChatMessage]:
    calls = step_calls(step)
    asked = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in calls
        ],
    }
    return [asked, *(_output_message(call) for call in calls)]


def _output_message(call: Body) -> ChatMessage:
    return {"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": call["output"] or ""}


def lead_of(messages: Iterable[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Return the calls and outputs behind the last text that a run wrote: what led to its next message."""
    lead: list[ChatMessage] = []
    for message in messages:
        lead = [] if message["role"] == "assistant" and "tool_calls" not in message else [*lead, message]
    return tuple(lead)
