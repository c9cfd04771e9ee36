"""Reads a thread as a conversation: its messages, and what the present run has done so far."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.errors import InvalidRequest
from services.gateway.runs.binding import Binding
from services.gateway.runs.documents import text_of
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.search_calls import NAME, Found, StepNotes
from services.gateway.runs.turns import ChatMessage, HistoryEntry
from services.gateway.store.kinds import MESSAGE, STEP, Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Query, Record

_PAGE = 100
_MESSAGE_CHARACTERS = 32
"""What a template adds to a message, about: many short messages fill a context, too."""


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
            num_characters += _MESSAGE_CHARACTERS + len(text_of(record.body))
            if record.body["run_id"] != run.id and record.body["content"]:
                entries.append(message_entry(record))
        if not page.has_more:
            break
        after = page.records[-1].ref.id
    own = await own_work(objects, run, thread)
    return [*reversed(entries), *([own.entry] if own.messages else [])]


def called_by(own: HistoryEntry) -> list[str]:
    """Return the functions that a run has called so far."""
    return [call["function"]["name"] for message in own.messages for call in message.get("tool_calls", ())]


@dataclass(frozen=True)
class OwnWork:
    """What a run has said, called and been answered so far."""

    messages: tuple[ChatMessage, ...]
    found: tuple[Found, ...]
    """By its searches."""

    @property
    def sources(self) -> dict[str, str]:
        """The files by the marks that stand for their passages."""
        return {mark: file_id for each in self.found for mark, file_id in each.sources.items()}

    @property
    def entry(self) -> HistoryEntry:
        """The end of the conversation."""
        return HistoryEntry(None, self.messages, sources=self.sources)

    @property
    def lead(self) -> tuple[ChatMessage, ...]:
        """The calls and outputs behind the last text: what leads to the next message."""
        lead: list[ChatMessage] = []
        for message in self.messages:
            lead = [] if message["role"] == "assistant" and "tool_calls" not in message else [*lead, message]
        return tuple(lead)


async def own_work(objects: Objects, run: Ref, thread: Ref) -> OwnWork:
    """Return what a run has done so far."""
    messages: list[ChatMessage] = []
    found: list[Found] = []
    for record in await _steps(objects, run):
        step = record.body
        if step["status"] != "completed":
            continue
        if step["type"] == "message_creation":
            ref = MESSAGE.ref(step["step_details"]["message_creation"]["message_id"])
            message = await objects.get(ref, parent=thread)
            messages.append({"role": "assistant", "content": text_of(message.body)})
        else:
            notes = StepNotes.from_bytes(record.private)
            messages += _call_messages(step, notes)
            found += notes.searches.values()
    return OwnWork(tuple(messages), tuple(found))


async def _steps(objects: Objects, run: Ref) -> list[Record]:
    steps: list[Record] = []
    after = None
    while True:
        page = await objects.list(Query(STEP, run, limit=_PAGE, order="asc", after=after, with_private=True))
        steps += page.records
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
    if binding is None:
        return HistoryEntry(record.ref.id, (message,))
    return HistoryEntry(record.ref.id, (*binding.lead, message), binding, binding.sources)


def _call_messages(step: Body, notes: StepNotes) -> Sequence[ChatMessage]:
    calls = [_call(call, notes) for call in step["step_details"]["tool_calls"]]
    asked = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in calls
        ],
    }
    return [asked, *(_output_message(call) for call in calls)]


def _call(call: Body, notes: StepNotes) -> Body:
    """Return a call of a step as a call of a function, which it is for the model."""
    if call["type"] == "function":
        return {"id": call["id"], **call["function"]}
    found = notes.searches[call["id"]]
    return {"id": call["id"], "name": NAME, "arguments": found.arguments, "output": found.output}


def _output_message(call: Body) -> ChatMessage:
    return {"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": call["output"] or ""}
