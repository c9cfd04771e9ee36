"""Reads a thread as a conversation: its messages, what is beside them, and what the present run has done so far."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidRequest
from services.gateway.runs.binding import Binding
from services.gateway.runs.documents import TEXT_PARTS, text_of
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.search_calls import NAME, Found, StepNotes
from services.gateway.runs.tails import TailReader
from services.gateway.runs.turns import ChatMessage, HistoryEntry, is_text_of_model
from services.gateway.store.kinds import ITEM, MESSAGE, STEP, Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Query, Record

_PAGE = 100
_SAID_IN = "message_id"
"""Names the message of the thread with the text of a turn that called; it is not for templates."""
SAID_NOTHING: ChatMessage = {"role": "assistant", "content": ""}
"""A turn that only calls."""

ReadItem = Callable[[Body], HistoryEntry | None]
"""Returns what a run reads of an item that its thread does not show; None if it reads nothing of it."""


async def read_history(
    objects: Objects, run: Ref, thread: Ref, read_item: ReadItem, *, max_characters: int
) -> list[HistoryEntry]:
    """Return the thread in its order; what lies further back than about ``max_characters`` is left out.

    Raises:
        InvalidRequest: a message or an item has something that models of text cannot read.
        ObjectNotFound: the thread was deleted.
    """
    query = Query(MESSAGE, thread, limit=_PAGE, with_private=True, also=(ITEM,))
    entries: list[HistoryEntry] = []
    beside: dict[Ref, HistoryEntry | None] = {}

    def said(record: Record) -> Any:
        if record.ref.kind is MESSAGE:
            return said_in(record)
        entry = beside[record.ref] = read_item(record.body)
        return () if entry is None else entry.messages

    for record in await TailReader(objects, max_characters).read(query, said):
        if record.ref.kind is ITEM:
            entries += filter(None, [beside[record.ref]])
        elif record.body["run_id"] != run.id and record.body["content"]:
            add_message(entries, record)
    own = await own_work(objects, run, thread)
    return [*entries, *([own.entry] if own.messages else [])]


def called_by(own: HistoryEntry) -> list[str]:
    """Return the functions that a run has called so far."""
    return [call["function"]["name"] for message in own.messages for call in message.get("tool_calls", ())]


@dataclass(frozen=True)
class OwnWork:
    """What a run has said, called and been answered so far."""

    messages: tuple[ChatMessage, ...]
    """One for each turn, and the outputs of its calls."""
    found: tuple[Found, ...]
    """By its searches."""

    @property
    def sources(self) -> dict[str, str]:
        """The files by the marks that stand for their passages."""
        return {mark: file_id for each in self.found for mark, file_id in each.sources.items()}

    @property
    def entry(self) -> HistoryEntry:
        """The end of the conversation."""
        return HistoryEntry(None, tuple(_without_name(message) for message in self.messages), sources=self.sources)

    @property
    def lead(self) -> tuple[ChatMessage, ...]:
        """What leads to the next message, as it is kept with that: texts stay in the messages that have them."""
        return tuple({**message, "content": ""} if _SAID_IN in message else message for message in self.messages)


async def own_work(objects: Objects, run: Ref, thread: Ref) -> OwnWork:
    """Return what a run has done so far; a text and the calls behind it are one message, as one turn said them."""
    messages: list[ChatMessage] = []
    found: list[Found] = []
    async for record in objects.each(Query(STEP, run, limit=_PAGE, order="asc", with_private=True)):
        step = record.body
        if step["status"] != "completed":
            continue
        if step["type"] == "message_creation":
            ref = MESSAGE.ref(step["step_details"]["message_creation"]["message_id"])
            message = await objects.get(ref, parent=thread)
            messages.append({"role": "assistant", "content": text_of(message.body), _SAID_IN: ref.id})
        else:
            notes = StepNotes.from_bytes(record.private)
            calls = [_call(call, notes) for call in step["step_details"]["tool_calls"]]
            said = messages.pop() if messages and is_text_of_model(messages[-1]) else SAID_NOTHING
            messages += [with_calls(said, calls), *(_output_message(call) for call in calls)]
            found += notes.searches.values()
    return OwnWork(tuple(messages), tuple(found))


def with_calls(said: ChatMessage, calls: Iterable[Body]) -> ChatMessage:
    """Return what a turn said with its calls, of which each has ``id``, ``name`` and ``arguments``."""
    asked = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls
    ]
    return {**said, "tool_calls": [*said.get("tool_calls", ()), *asked]}


def said_in(message: Record) -> Sequence[Any]:
    """Return the texts that models read of a message of a thread, and of what led to it."""
    binding = Binding.from_bytes(message.private) if message.private is not None else None
    return (text_of(message.body), () if binding is None else binding.lead)


def add_message(entries: list[HistoryEntry], record: Record) -> None:
    """Add a message of a thread to the conversation before it; texts that led to it move into its entry.

    Raises:
        InvalidRequest: it has something that models of text cannot read.
    """
    for part in record.body["content"]:
        if part["type"] not in TEXT_PARTS:
            raise InvalidRequest(
                f"The message '{record.ref.id}' has content of type '{part['type']}', and this model reads text only."
            )
    message = {"role": record.body["role"], "content": text_of(record.body)}
    binding = Binding.from_bytes(record.private) if record.private is not None else None
    if binding is None:
        entries.append(HistoryEntry(record.ref.id, (message,)))
        return
    texts = _taken_texts(entries, {each[_SAID_IN] for each in binding.lead if _SAID_IN in each})
    lead = (_without_name({**each, "content": texts.get(each.get(_SAID_IN), each["content"])}) for each in binding.lead)
    entries.append(HistoryEntry(record.ref.id, (*lead, message), binding, binding.sources))


def _taken_texts(entries: list[HistoryEntry], message_ids: Container[str | None]) -> dict[str | None, str]:
    """Take messages from the end of a conversation; return their texts. One that was deleted has none."""
    texts: dict[str | None, str] = {}
    while entries and entries[-1].message_id in message_ids:
        entry = entries.pop()
        texts[entry.message_id] = entry.messages[-1]["content"]
    return texts


def _without_name(message: ChatMessage) -> ChatMessage:
    return {name: value for name, value in message.items() if name != _SAID_IN}


def _call(call: Body, notes: StepNotes) -> Body:
    """Return a call of a step as a call of a function, which it is for the model."""
    if call["type"] == "function":
        return {"id": call["id"], **call["function"]}
    found = notes.searches[call["id"]]
    return {"id": call["id"], "name": NAME, "arguments": found.arguments, "output": found.output}


def _output_message(call: Body) -> ChatMessage:
    return {"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": call["output"] or ""}
