"""What one turn has said so far: a fold over its events, and the events that say more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from services.gateway.jobs.events import Event, with_tokens
from services.gateway.runs.citations import new_citations
from services.gateway.runs.documents import (
    call_part,
    calls_delta,
    calls_step,
    completed_message,
    ended_step,
    message_step,
    new_message,
    search_part,
    text_delta,
    with_calls,
)
from services.gateway.runs.events import message_event, step_event
from services.gateway.runs.job import Used
from services.gateway.runs.lifecycle import Body, usage_json
from services.gateway.runs.search_calls import NAME, Found, is_tool_of
from services.gateway.runs.turns import Called, TurnEvent, Written
from services.gateway.store.kinds import MESSAGE, STEP, Kind

CALL = Kind("call", "call", "tool call")
"""Calls are no objects of their own; they only have ids of this form."""


@dataclass
class Transcript:
    """The open step and message of a turn, and all that they hold."""

    step: Body | None = None
    message: Body | None = None
    text: str = ""
    annotations: list[Body] = field(default_factory=list)
    """Of the text."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """As ``documents`` keeps them, as far as they were told."""
    token_ids: list[int] = field(default_factory=list)
    """All output of the turn."""
    silent_ids: list[int] = field(default_factory=list)
    """The end of it that no event has: tokens that showed nothing so far."""
    num_counted: int = 0
    """How many of the tokens are in the usage of a step that is over."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Transcript":
        """Return what the events of a turn have said."""
        transcript = cls()
        for event in events:
            transcript.apply(event)
        return transcript

    def apply(self, event: Event) -> None:
        """Take one more event."""
        self.token_ids.extend(event.token_ids)
        if event.name == "thread.message.delta":
            for part in event.data["delta"]["content"]:
                self.text += part["text"]["value"]
                self.annotations += (_without_index(each) for each in part["text"]["annotations"])
        elif event.name == "thread.run.step.delta":
            self._take_calls(event.data["delta"]["step_details"]["tool_calls"])
        elif event.name.startswith("thread.run.step."):
            self.step = event.data if event.data["status"] == "in_progress" else None
            self.num_counted += (event.data["usage"] or {}).get("completion_tokens", 0)
        elif event.name.startswith("thread.message."):
            self.message = event.data if event.data["status"] == "in_progress" else None

    @property
    def step_with_calls(self) -> Body | None:
        """The open step as it is to be kept."""
        return with_calls(self.step, self.calls) if self.step is not None and self.calls else self.step

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The calls that the client answers."""
        return [call for call in self.calls if call["type"] == "function"]

    def usage_of_step(self, turn: Used) -> Body:
        """Return what the open step used of a turn: all but what the message before its calls did."""
        return replace(turn, completion_tokens=turn.completion_tokens - self.num_counted).usage

    def _take_calls(self, parts: Iterable[Body]) -> None:
        for part in parts:
            kind = part["type"]
            if part["index"] == len(self.calls):
                self.calls.append({"id": part["id"], "type": kind})
            call = self.calls[part["index"]]
            if kind == "file_search":
                call["file_search"] = part["file_search"]
            else:
                function = part["function"]
                call["name"] = function.get("name") or call["name"]
                call["arguments"] = call.get("arguments", "") + function["arguments"]


class TranscriptWriter:
    """Turns what a model says into events; each is taken by the transcript at once."""

    def __init__(
        self, transcript: Transcript, run: Body, now: Callable[[], int], sources: Mapping[str, str] | None = None
    ) -> None:
        """``sources`` are the files behind the marks that the text may cite."""
        self._transcript = transcript
        self._run = run
        self._now = now
        self._sources = sources or {}
        self._events: list[Event] = []

    def events(self, said: Sequence[TurnEvent]) -> list[Event]:
        """Return the events that tell what was said; texts that follow each other become one delta."""
        parts = [part for each in said for part in each.parts]
        if text := "".join(part.text for part in parts if isinstance(part, Written)):
            self._write(text)
        if calls := [part for part in parts if isinstance(part, Called)]:
            self._open_calls(len(self._transcript.token_ids) + _num_tokens_before_calls(said))
            self._call(calls)
        return self._taken(tuple(token_id for each in said for token_id in each.token_ids))

    def found(self, searches: Mapping[int, Found]) -> list[Event]:
        """Return the event that tells what searches found, by the index of the call."""
        if searches:
            self._tell_calls([search_part(index, found=each.shown) for index, each in searches.items()])
        return self._taken(())

    def opened_message(self) -> list[Event]:
        """Return the events that begin a message, if none has begun: an answer without text is one, too."""
        if not (self._transcript.message or self._transcript.calls):
            self._open_message()
        return self._taken(())

    def _write(self, text: str) -> None:
        self._open_message()
        said = self._transcript
        assert said.message is not None
        after = said.annotations[-1]["start_index"] if said.annotations else -1
        cited = new_citations(said.text, text, self._sources, after=after)
        annotations = [{"index": index, **each} for index, each in enumerate(cited, len(said.annotations))]
        self._emit(Event("thread.message.delta", text_delta(said.message["id"], text, annotations)))

    def _call(self, calls: Sequence[Called]) -> None:
        if parts := self._parts(calls):
            self._tell_calls(parts)

    def _tell_calls(self, parts: Sequence[Body]) -> None:
        assert self._transcript.step is not None
        self._emit(Event("thread.run.step.delta", calls_delta(self._transcript.step["id"], parts)))

    def _open_message(self) -> None:
        if self._transcript.message is None:
            message, now = MESSAGE.new_ref(), self._now()
            self._open_step(message_step(STEP.new_ref(), self._run, message.id, now))
            self._emit(Event("thread.message.created", new_message(message, self._run, now)))
            self._emit(Event("thread.message.in_progress", new_message(message, self._run, now)))

    def _open_calls(self, num_written: int) -> None:
        """Begin the step of the calls, which counts the prompt; a message of ``num_written`` tokens ends."""
        if self._transcript.message is not None and self._transcript.step is not None:
            now = self._now()
            self._emit(message_event(_whole_message(self._transcript, now)))
            usage = usage_json(0, num_written, 0)
            self._emit(step_event(ended_step(self._transcript.step, "completed", now, usage=usage)))
        if self._transcript.step is None:
            self._open_step(calls_step(STEP.new_ref(), self._run, self._now()))

    def _open_step(self, step: Body) -> None:
        self._emit(Event("thread.run.step.created", step))
        self._emit(step_event(step))

    def _parts(self, calls: Sequence[Called]) -> list[Body]:
        """Return one part for each call that got more; of the arguments of searches nothing is told."""
        known, parts = len(self._transcript.calls), []
        for index in sorted({call.index for call in calls}):
            arguments = "".join(call.arguments for call in calls if call.index == index)
            name = next((call.name for call in calls if call.index == index and call.name is not None), None)
            call_id = CALL.new_ref().id if index >= known else None
            if not self._is_search(index, name):
                parts.append(call_part(index, arguments, call_id=call_id, name=name))
            elif call_id is not None:
                parts.append(search_part(index, call_id=call_id))
        return parts

    def _is_search(self, index: int, name: str | None) -> bool:
        if index < len(self._transcript.calls):
            return bool(self._transcript.calls[index]["type"] == "file_search")
        return name == NAME and is_tool_of(self._run)

    def _emit(self, event: Event) -> None:
        self._transcript.apply(event)
        self._events.append(event)

    def _taken(self, token_ids: tuple[int, ...]) -> list[Event]:
        events, self._events = self._events, []
        self._transcript.token_ids.extend(token_ids)
        return with_tokens(events, self._transcript.silent_ids, token_ids)


def _num_tokens_before_calls(said: Sequence[TurnEvent]) -> int:
    written = takewhile(lambda each: not any(isinstance(part, Called) for part in each.parts), said)
    return sum(len(each.token_ids) for each in written)


def _whole_message(said: Transcript, now: int) -> Body:
    assert said.message is not None
    return completed_message(said.message, said.text, said.annotations, now)


def _without_index(annotation: Body) -> Body:
    return {name: value for name, value in annotation.items() if name != "index"}
