"""Reads what a response goes on from: the responses before it, or a conversation, and its own input."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from services.errors import InvalidRequest, NoDecodeWorker, ObjectNotFound
from services.gateway.jobs.events import ENDS, Body
from services.gateway.models import ModelCatalog
from services.gateway.responses.items import chat_message, is_bound, is_cut_call, summary_item, text_of, thread_behind
from services.gateway.responses.state import ResponseState
from services.gateway.runs.binding import Binding
from services.gateway.runs.history import SAID_NOTHING, add_message, said_in, with_calls
from services.gateway.runs.search_calls import NAME, Found
from services.gateway.runs.tails import TailReader
from services.gateway.runs.turns import HistoryEntry
from services.gateway.sealing import Sealer
from services.gateway.store.kinds import INPUT_ITEM, ITEM, MESSAGE, RESPONSE, Ref
from services.gateway.store.object_store import Objects, ObjectStore
from services.gateway.store.records import Query, Record

_MAX_CHARACTERS = 4_000_000
"""What lies further back is not read for a model that nobody serves now."""
MAX_ANCESTORS = 1000
"""Responses that one may go on from, one behind the other: each of them is read."""
_PAGE = 100

Plain = Callable[[Body], Body]
"""Returns an item as models read it, which none that is sealed is."""


@dataclass(frozen=True)
class Context:
    """What was before a response."""

    entries: Sequence[HistoryEntry] = ()
    ancestors: Sequence[Ref] = ()
    """The responses that it goes on from, the last one first."""
    last_child: int | None = None
    """The last number that its thread had given when it was read."""
    is_cut: bool = False
    """Whether something was so far back that it was not read."""


class HistoryBuilder:
    """Puts items together to entries: a message, or the calls of a turn with their outputs."""

    def __init__(self) -> None:
        self._entries: list[HistoryEntry] = []
        self._names: dict[str, str] = {}
        """Of functions, by call."""
        self._unanswered: set[str] = set()
        self.begins_late = False
        """Whether there was more before what is taken; an output whose call was there is left out."""

    def add(self, item: Body, binding: Binding | None = None) -> None:
        """Take the next item, unless it is a call that was cut; ``binding`` is that of its turn.

        Raises:
            InvalidRequest: models of text cannot read it, or it answers no call.
        """
        if item["type"] == "message":
            self._entries.append(HistoryEntry(item["id"], (chat_message(item),), binding))
        elif item["type"] == "function_call" and not is_cut_call(item):
            self._call(item, binding)
        elif item["type"] == "function_call_output":
            self._answer(item)

    def add_message(self, record: Record) -> None:
        """Take a message of a thread.

        Raises:
            InvalidRequest: models of text cannot read it.
        """
        add_message(self._entries, record)

    def add_search(self, item: Body, found: Found) -> None:
        """Take a search of files, which is a call of a function for the model, and what it found."""
        self._call({**item, "call_id": item["id"], "name": NAME, "arguments": found.arguments})
        self._answer({**item, "type": "function_call_output", "call_id": item["id"], "output": found.output})
        last = self._entries[-1]
        self._entries[-1] = replace(last, sources={**last.sources, **found.sources})

    def own_entry(self) -> HistoryEntry | None:
        """Return what a response has done so far, if that is all that was taken; None if it did nothing."""
        messages = tuple(message for entry in self._entries for message in entry.messages)
        sources = {mark: file_id for entry in self._entries for mark, file_id in entry.sources.items()}
        return HistoryEntry(None, messages, sources=sources) if messages else None

    def entries(self) -> list[HistoryEntry]:
        """Return all entries.

        Raises:
            InvalidRequest: the output of a call is missing.
        """
        for call_id in self._unanswered:
            raise InvalidRequest(f"No tool output found for function call {call_id}.", param="input")
        return self._entries

    def _call(self, item: Body, binding: Binding | None = None) -> None:
        call = {"id": item["call_id"], "name": item["name"], "arguments": item["arguments"]}
        last = self._entries[-1] if self._entries else None
        if last is not None and last.binding is None and last.messages[-1]["role"] == "assistant":  # the same turn
            said = with_calls(last.messages[-1], [call])
            self._entries[-1] = replace(
                last, message_id=item["id"], messages=(*last.messages[:-1], said), binding=binding
            )
        elif last is not None and self._unanswered:
            self._entries[-1] = replace(last, messages=(*last.messages, with_calls(SAID_NOTHING, [call])))
        else:
            self._entries.append(HistoryEntry(item["id"], (with_calls(SAID_NOTHING, [call]),), binding))
        self._names[item["call_id"]] = item["name"]
        self._unanswered.add(item["call_id"])

    def _answer(self, item: Body) -> None:
        call_id = item["call_id"]
        if call_id not in self._names:
            if self.begins_late:
                return
            raise InvalidRequest(f"No tool call found for function call output with call_id {call_id}.", param="input")
        self._unanswered.discard(call_id)
        told = {"role": "tool", "tool_call_id": call_id, "name": self._names[call_id], "content": text_of(item)}
        last = self._entries[-1]
        self._entries[-1] = replace(last, messages=(*last.messages, told))


class ContextReader:
    """Reads what responses go on from."""

    def __init__(self, objects: ObjectStore, catalog: ModelCatalog, sealer: Sealer) -> None:
        """``sealer`` opens the summaries of conversations that were compacted."""
        self._objects = objects
        self._catalog = catalog
        self._sealer = sealer

    async def read(self, project: str, response: Body, items: Iterable[Body], *, least_characters: int = 0) -> Context:
        """Return what a response goes on from, its own input ``items`` at the end.

        What lies further back than its model has room for is not read, unless it is within ``least_characters``.

        Raises:
            InvalidRequest: there is no such response before it, or something that models of text cannot read.
            ObjectNotFound: there is no such conversation.
            ModelNotFound: there is no such model.
        """
        plain = partial(self._plain, project)
        objects, builder = self._objects.of(project), HistoryBuilder()
        reader = TailReader(objects, max(least_characters, await self._max_characters(response["model"])))
        thread, previous = thread_behind(response), response["previous_response_id"]
        context = Context()
        if thread is not None:
            context = Context(last_child=await objects.last_child(thread))
            await _read_thread(builder, reader, thread, plain)
        elif previous is not None:
            context = Context(ancestors=await _read_chain(builder, objects, reader, previous, plain))
        builder.begins_late = False
        for item in items:
            builder.add(plain(item))
        return replace(context, entries=builder.entries(), is_cut=reader.is_cut)

    def read_by_runs(self, project: str, item: Body) -> HistoryEntry | None:
        """Return what a run reads of an item that its thread does not show; None if the item was not said.

        Raises:
            InvalidRequest: models of text cannot read it.
        """
        is_said = item["type"] == "message" and item["role"] in ("developer", "system")
        if not is_said and item["type"] != "compaction":
            return None
        return HistoryEntry(item["id"], (chat_message(self._plain(project, item)),))

    def _plain(self, project: str, item: Body) -> Body:
        if item["type"] != "compaction":
            return item
        return summary_item(item["id"], self._sealer.opened(project, item["encrypted_content"]))

    async def _max_characters(self, model: str) -> int:
        try:
            return (await self._catalog.resolve(model)).tokenizer.max_characters
        except NoDecodeWorker:  # a response in the background waits for one
            return _MAX_CHARACTERS


async def read_items(objects: Objects, response: Ref) -> list[Body]:
    """Return the input of a response, in its order."""
    return [item.body async for item in objects.each(Query(INPUT_ITEM, response, limit=_PAGE, order="asc"))]


async def _read_thread(builder: HistoryBuilder, reader: TailReader, thread: Ref, plain: Plain) -> None:
    records = await reader.read(Query(MESSAGE, thread, limit=_PAGE, with_private=True, also=(ITEM,)), _said_in)
    builder.begins_late = reader.is_cut
    for record in records:
        if record.ref.kind is ITEM:
            _add(builder, plain(record.body), _found_in(record), _binding_in(record))
        elif record.body["content"]:
            builder.add_message(record)


@dataclass(frozen=True)
class _Ancestor:
    """A response that another one goes on from."""

    ref: Ref
    items: Sequence[Body]
    """Of its input."""
    output: Sequence[Body]
    state: ResponseState


async def _read_chain(
    builder: HistoryBuilder, objects: Objects, reader: TailReader, previous: str, plain: Plain
) -> list[Ref]:
    chain: list[_Ancestor] = []
    name: str | None = previous
    while name is not None and reader.has_room:
        if len(chain) == MAX_ANCESTORS:
            raise InvalidRequest(
                f"A response goes on from {MAX_ANCESTORS} others at most, one behind the other. Use a conversation "
                "instead: it may have any number of items.",
                param="previous_response_id",
            )
        record = await _stored(objects, name)
        if record is None:
            if name == previous:
                raise _absent(name)
            break  # it was deleted, and what was before it with it
        output, state = record.body["output"], ResponseState.from_bytes(record.private)
        for item in output:
            reader.count(_said(item, state.found.get(item["id"])))
        items = await reader.read(Query(INPUT_ITEM, record.ref, limit=_PAGE), lambda item: _said(item.body))
        chain.append(_Ancestor(record.ref, [item.body for item in items], output, state))
        name = record.body["previous_response_id"]
    builder.begins_late = reader.is_cut or name is not None
    reader.is_cut = reader.is_cut or (name is not None and not reader.has_room)
    for each in reversed(chain):
        for item in each.items:
            builder.add(plain(item))
        for item in each.output:
            is_last = item is each.output[-1] and is_bound(item)
            _add(builder, item, each.state.found.get(item["id"]), each.state.binding if is_last else None)
    return [each.ref for each in chain]


def _said_in(record: Record) -> Any:
    """Return the texts that models read of an object of a thread."""
    return said_in(record) if record.ref.kind is MESSAGE else _said(record.body, _found_in(record))


def _said(item: Body, found: Found | None = None) -> Any:
    """Return the texts that models read of an item, and a little more."""
    return (item["content"] if item["type"] == "message" else item, "" if found is None else found.output)


def own_work(output: Sequence[Body], found: Mapping[str, Found]) -> HistoryEntry | None:
    """Return what a response that is not over has said and found so far."""
    builder = HistoryBuilder()
    for item in output:
        _add(builder, item, found.get(item["id"]))
    return builder.own_entry()


def _add(builder: HistoryBuilder, item: Body, found: Found | None, binding: Binding | None = None) -> None:
    if found is not None:
        builder.add_search(item, found)
    else:
        builder.add(item, binding)


def _found_in(record: Record) -> Found | None:
    is_search = record.body["type"] == "file_search_call" and record.private is not None
    return Found.of(orjson.loads(record.private or b"")) if is_search else None


def _binding_in(record: Record) -> Binding | None:
    is_call = record.body["type"] == "function_call" and record.private is not None
    return Binding.from_bytes(record.private or b"") if is_call else None


async def _stored(objects: Objects, response_id: str) -> Record | None:
    """Return a response that may be gone on from; None if there is none.

    Raises:
        InvalidRequest: it has not ended.
    """
    try:
        record = await objects.get(RESPONSE.ref(response_id), with_private=True)
    except ObjectNotFound:
        return None
    if record.body["store"] and record.body["status"] not in ENDS:
        raise InvalidRequest(
            f"Previous response with id '{response_id}' is {record.body['status']}; wait for its end, or cancel it.",
            param="previous_response_id",
        )
    return record if record.body["store"] else None


def _absent(response_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
