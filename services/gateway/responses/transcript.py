"""What a response has said: a fold over its events, and the events that say more."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.gateway.jobs.events import Event
from services.gateway.responses.items import call_item, message_item, new_item_id, output_text
from services.gateway.runs.turns import Called, TurnEvent, TurnPart, Written
from services.gateway.store.kinds import Kind

CALL = Kind("call", "call", "tool call")
"""Calls are no objects of their own; they only have ids of this form."""


@dataclass
class Transcript:
    """The output of a response so far."""

    output: list[dict[str, Any]] = field(default_factory=list)
    """Items; the last one may be open."""
    token_ids: list[int] = field(default_factory=list)
    """All output of the turn."""
    silent_ids: list[int] = field(default_factory=list)
    """The end of it that no event has: tokens that showed nothing so far."""

    def apply(self, event: Event) -> None:
        """Take one more event."""
        self.token_ids.extend(event.token_ids)
        data = event.data
        match event.name:
            case "response.output_item.added":
                self.output.append(dict(data["item"]))
            case "response.output_item.done":
                self.output[data["output_index"]] = dict(data["item"])
            case "response.content_part.added":
                self.output[data["output_index"]]["content"] = [dict(data["part"])]
            case "response.output_text.delta":
                self.output[data["output_index"]]["content"][0]["text"] += data["delta"]
            case "response.function_call_arguments.delta":
                self.output[data["output_index"]]["arguments"] += data["delta"]

    @property
    def open_item(self) -> dict[str, Any] | None:
        """The item that more may be added to."""
        last = self.output[-1] if self.output else None
        return last if last is not None and last["status"] == "in_progress" else None

    @property
    def num_calls(self) -> int:
        """How many functions were called."""
        return sum(item["type"] == "function_call" for item in self.output)


class TranscriptWriter:
    """Turns what a model says into events; each is taken by the transcript at once."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._events: list[Event] = []

    def events(self, said: Sequence[TurnEvent]) -> list[Event]:
        """Return the events that tell what was said."""
        for part in _joined([part for each in said for part in each.parts]):
            if isinstance(part, Written):
                self._write(part)
            else:
                self._call(part)
        return self._taken(tuple(token_id for each in said for token_id in each.token_ids))

    def closing(self, status: str) -> list[Event]:
        """Return the events that end what is open with a status; an answer without text is a message, too."""
        if status == "completed" and not self._transcript.output:
            self._open_message()
        self._close(status)
        return self._taken(())

    def _write(self, part: Written) -> None:
        if not part.text:
            return
        item = self._transcript.open_item
        if item is None or item["type"] != "message":
            self._close("completed")
            item = self._open_message()
        self._emit("output_text.delta", item_id=item["id"], content_index=0, delta=part.text, logprobs=[])

    def _call(self, part: Called) -> None:
        item = self._transcript.open_item
        if part.index == self._transcript.num_calls:
            self._close("completed")
            call_id = CALL.new_ref().id
            added = call_item(new_item_id("function_call"), call_id, part.name or "", "", "in_progress")
            self._emit("output_item.added", item=added)
            item = self._transcript.open_item
        assert item is not None  # a call is never gone back to
        if part.arguments:
            self._emit("function_call_arguments.delta", item_id=item["id"], delta=part.arguments)

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
        place = len(self._transcript.output) - (name != "output_item.added")
        event = Event(f"response.{name}", {"type": f"response.{name}", "output_index": place, **data})
        self._transcript.apply(event)
        self._events.append(event)

    def _taken(self, token_ids: tuple[int, ...]) -> list[Event]:
        events, self._events = self._events, []
        self._transcript.token_ids.extend(token_ids)
        self._transcript.silent_ids.extend(token_ids)
        if events:
            events[-1] = replace(events[-1], token_ids=tuple(self._transcript.silent_ids))
            self._transcript.silent_ids.clear()
        return events


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
