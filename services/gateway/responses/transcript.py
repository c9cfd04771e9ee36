"""What a response has said: a fold over its events, and the events that say more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.gateway.jobs.events import Event, with_tokens
from services.gateway.responses.items import (
    call_item,
    file_citation,
    message_item,
    new_item_id,
    output_text,
    search_item,
)
from services.gateway.runs.citations import new_citations
from services.gateway.runs.search_calls import NAME
from services.gateway.runs.turns import Called, TurnEvent, TurnPart, Written
from services.gateway.store.kinds import Kind

CALL = Kind("call", "call", "tool call")
"""Calls are no objects of their own; they only have ids of this form."""
_CALLS = ("function_call", "file_search_call")


@dataclass
class Transcript:
    """The output of a response so far."""

    output: list[dict[str, Any]] = field(default_factory=list)
    """Items; of those of a turn, searches and the last one may be open."""
    calls: list[int] = field(default_factory=list)
    """Places of the turn's calls in the output."""
    token_ids: list[int] = field(default_factory=list)
    """All output of the turn."""
    silent_ids: list[int] = field(default_factory=list)
    """The end of it that no event has: tokens that showed nothing so far."""

    def begin_turn(self) -> None:
        """Take what follows as a new turn."""
        self.calls, self.token_ids, self.silent_ids = [], [], []

    def apply(self, event: Event) -> None:
        """Take one more event."""
        self.token_ids.extend(event.token_ids)
        data = event.data
        match event.name:
            case "response.output_item.added":
                if data["item"]["type"] in _CALLS:
                    self.calls.append(len(self.output))
                self.output.append(dict(data["item"]))
            case "response.output_item.done":
                self.output[data["output_index"]] = dict(data["item"])
            case "response.content_part.added":
                self.output[data["output_index"]]["content"] = [dict(data["part"])]
            case "response.output_text.delta":
                self.output[data["output_index"]]["content"][0]["text"] += data["delta"]
            case "response.output_text.annotation.added":
                part = self.output[data["output_index"]]["content"][0]
                part["annotations"] = [*part["annotations"], data["annotation"]]
            case "response.function_call_arguments.delta":
                self.output[data["output_index"]]["arguments"] += data["delta"]

    @property
    def open_item(self) -> dict[str, Any] | None:
        """The item that more may be added to."""
        last = self.output[-1] if self.output else None
        is_open = last is not None and last["status"] == "in_progress" and last["type"] != "file_search_call"
        return last if is_open else None

    def calls_of(self, item_type: str) -> list[int]:
        """Return which calls of the turn are of a type, by their index among the calls."""
        return [index for index, place in enumerate(self.calls) if self.output[place]["type"] == item_type]


@dataclass(frozen=True)
class Citable:
    """What an answer may cite."""

    sources: Mapping[str, str] = field(default_factory=dict)
    """Files by the marks of their passages."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of files, as far as they are known."""
    is_searching: bool = False
    """Whether the model may search files."""


class TranscriptWriter:
    """Turns what a model says into events; each is taken by the transcript at once."""

    def __init__(self, transcript: Transcript, citable: Citable) -> None:
        self._transcript = transcript
        self._citable = citable
        self._events: list[Event] = []

    def events(self, said: Sequence[TurnEvent]) -> list[Event]:
        """Return the events that tell what was said."""
        for part in _joined([part for each in said for part in each.parts]):
            if isinstance(part, Written):
                self._write(part)
            else:
                self._call(part)
        return self._taken(tuple(token_id for each in said for token_id in each.token_ids))

    def found(self, queries: Mapping[int, str]) -> list[Event]:
        """Return the events that end the searches of the turn; ``queries`` of those made, by the index of the call."""
        for index in self._transcript.calls_of("file_search_call"):
            place = self._transcript.calls[index]
            item = self._transcript.output[place]
            if (query := queries.get(index)) is None:
                self._tell(place, "output_item.done", item={**item, "status": "incomplete"})
                continue
            self._tell(place, "file_search_call.completed", item_id=item["id"])
            self._tell(place, "output_item.done", item=search_item(item["id"], "completed", [query] if query else []))
        return self._taken(())

    def closing(self, status: str) -> list[Event]:
        """Return the events that end what is open with a status; an answer without text is a message, too."""
        if status == "completed" and not (self._transcript.calls or self._transcript.open_item):
            self._open_message()
        self._close(status)
        for place, item in enumerate(self._transcript.output):
            if item["status"] == "in_progress":
                self._tell(place, "output_item.done", item={**item, "status": "incomplete"})
        return self._taken(())

    def _write(self, part: Written) -> None:
        if not part.text:
            return
        item = self._transcript.open_item
        if item is None or item["type"] != "message":
            self._close("completed")
            item = self._open_message()
        known = item["content"][0]["text"]
        self._emit("output_text.delta", item_id=item["id"], content_index=0, delta=part.text, logprobs=[])
        self._cite(item, known, part.text)

    def _cite(self, item: dict[str, Any], known: str, added: str) -> None:
        """Tell of citations that a text gets by what is added to it."""
        annotations = item["content"][0]["annotations"]
        after = annotations[-1]["index"] if annotations else -1
        cited_anew = new_citations(known, added, self._citable.sources, after=after)
        for index, cited in enumerate(cited_anew, len(annotations)):
            annotation = file_citation(cited, self._citable.names)
            named = {"item_id": item["id"], "content_index": 0, "annotation_index": index}
            self._emit("output_text.annotation.added", **named, annotation=annotation)

    def _call(self, part: Called) -> None:
        said = self._transcript
        if part.index == len(said.calls):
            self._close("completed")
            self._open_call(part.name or "")
        item = said.output[said.calls[part.index]]
        if part.arguments and item["type"] == "function_call":
            self._tell(
                said.calls[part.index], "function_call_arguments.delta", item_id=item["id"], delta=part.arguments
            )

    def _open_call(self, name: str) -> None:
        if name == NAME and self._citable.is_searching:
            item = search_item(new_item_id("file_search_call"), "in_progress")
            self._emit("output_item.added", item=item)
            for step in ("in_progress", "searching"):
                self._emit(f"file_search_call.{step}", item_id=item["id"])
        else:
            call_id = CALL.new_ref().id
            item = call_item(new_item_id("function_call"), call_id, name, "", "in_progress")
            self._emit("output_item.added", item=item)

    def _open_message(self) -> dict[str, Any]:
        item = message_item(new_item_id("message"), "assistant", [], "in_progress")
        self._emit("output_item.added", item=item)
        self._emit("content_part.added", item_id=item["id"], content_index=0, part=output_text(""))
        return self._transcript.output[-1]

    def _close(self, status: str) -> None:
        item = self._transcript.open_item
        if item is None:
            return
        if item["type"] == "message":
            part = item["content"][0] if item["content"] else output_text("")
            named = {"item_id": item["id"], "content_index": 0}
            self._emit("output_text.done", **named, text=part["text"], logprobs=[])
            self._emit("content_part.done", **named, part=dict(part))
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            self._emit("function_call_arguments.done", item_id=item["id"], **told)
        self._emit("output_item.done", item={**item, "status": status})

    def _emit(self, name: str, /, **data: Any) -> None:
        """Tell something about the last item, or of a new one."""
        self._tell(len(self._transcript.output) - (name != "output_item.added"), name, **data)

    def _tell(self, place: int, event: str, /, **data: Any) -> None:
        """Tell something about the item at a place of the output."""
        told = Event(f"response.{event}", {"type": f"response.{event}", "output_index": place, **data})
        self._transcript.apply(told)
        self._events.append(told)

    def _taken(self, token_ids: tuple[int, ...]) -> list[Event]:
        events, self._events = self._events, []
        self._transcript.token_ids.extend(token_ids)
        return with_tokens(events, self._transcript.silent_ids, token_ids)


def _joined(parts: Sequence[TurnPart]) -> list[TurnPart]:
    """Return parts with those that follow each other and say more of the same as one."""
    joined: list[TurnPart] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Written) and isinstance(last, Written):
            joined[-1] = replace(last, text=last.text + part.text)
        elif isinstance(part, Called) and isinstance(last, Called) and part.index == last.index:
            joined[-1] = replace(last, arguments=last.arguments + part.arguments)
        else:
            joined.append(part)
    return joined
