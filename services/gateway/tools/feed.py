"""Reads an output that comes in pieces, for the parsers of tool calls; where it was cut makes no difference.

A parser is a generator over one feed: it takes text, leaves events, and yields when it needs more. What it has taken
since ``mark`` can be given back as text, when it turns out to be no call.
"""

import json
from collections.abc import Callable, Generator
from typing import TypeVar

from services.gateway.text.stop import overlap
from services.gateway.tools.events import CallArguments, CallEvent, CallStarted, Reading, Text

Result = TypeVar("Result")
Taking = Generator[None, None, Result]
"""A part of a parser that returns something."""

_SPACE = " \t\r\n"
_OPENINGS = ("{", "[", '"')
_SCALAR_ENDS = ",]} \t\r\n"


class Feed:
    """The output as far as it is known and not read; what is taken is not copied with what is left."""

    def __init__(self) -> None:
        self.is_over = False
        self._buffer = ""
        self._next = 0
        """Where in the buffer the output is not read."""
        self._offset = 0
        self._mark = 0
        self._marked: list[str] | None = None
        self._events: list[CallEvent] = []
        self._arguments: list[str] = []
        """Of the last call, behind all events."""

    def add(self, text: str) -> None:
        """Append more of the output."""
        self._buffer, self._next = self._buffer[self._next :] + text, 0

    def events(self) -> list[CallEvent]:
        """Return what was read since the last time."""
        self._end_arguments()
        events, self._events = self._events, []
        return events

    def mark(self) -> None:
        """Remember this place."""
        self._mark, self._marked = self._offset, []

    def give_back(self) -> None:
        """Show what was taken since the mark as text."""
        text, self._marked = "".join(self._marked or ()), None
        self._show(text, self._mark)

    def start_call(self, name: str) -> None:
        """Begin a call; what was taken since the mark is part of it."""
        self._marked = None
        self._end_arguments()
        self._events.append(CallStarted(name))

    def add_arguments(self, text: str) -> None:
        """Go on with the arguments of the call."""
        if text:
            self._arguments.append(text)

    def peek(self) -> Taking[str]:
        """Return the next character without taking it; empty at the end of the output."""
        while not self._num_left and not self.is_over:
            yield
        return self._buffer[self._next : self._next + 1]

    def take(self, count: int = 1) -> str:
        """Take characters that are there."""
        taken = self._buffer[self._next : self._next + count]
        self._next += len(taken)
        self._offset += len(taken)
        if self._marked is not None:
            self._marked.append(taken)
        return taken

    def skip_space(self) -> Reading:
        """Take white space."""
        while (char := (yield from self.peek())) and char in _SPACE:
            self.take()

    def follows(self, text: str) -> Taking[bool]:
        """Take ``text`` if it comes next; return whether it did."""
        while self._num_left < len(text) and self._is_beginning_of(text) and not self.is_over:
            yield
        if not self._buffer.startswith(text, self._next):
            return False
        self.take(len(text))
        return True

    def comes(self, *texts: str) -> Taking[bool]:
        """Return whether one of ``texts`` comes next, without taking it."""
        while not any(self._buffer.startswith(text, self._next) for text in texts):
            if self.is_over or not any(self._is_beginning_of(text) for text in texts):
                return False
            yield
        return True

    def skip(self, text: str) -> Reading:
        """Take ``text`` if it comes next, or what there is of it at the end of the output."""
        if not (yield from self.follows(text)) and self.is_over and self._is_beginning_of(text):
            self.take(self._num_left)

    def show_until(self, marker: str) -> Taking[bool]:
        """Show all text before ``marker``, mark the place and take it; return False at the end of the output."""
        while (start := self._buffer.find(marker, self._next)) < 0:
            keep = 0 if self.is_over else overlap(self._buffer[self._next :], marker)
            self._show_next(self._num_left - keep)
            if self.is_over:
                return False
            yield
        self._show_next(start - self._next)
        self.mark()
        self.take(len(marker))
        return True

    def take_until(self, marker: str, *, max_length: int) -> Taking[str | None]:
        """Take the text before ``marker``, and it; None, with nothing taken, if it is not near or never comes."""
        while (start := self._buffer.find(marker, self._next)) < 0:
            if self.is_over or self._num_left > max_length + len(marker):
                return None
            yield
        if start - self._next > max_length:
            return None
        text = self.take(start - self._next)
        self.take(len(marker))
        return text

    def take_word(self) -> Taking[str]:
        """Take white space and the letters, digits, underscores and hyphens that come next."""
        yield from self.skip_space()
        taken = []
        while (char := (yield from self.peek())) and (char.isalnum() or char in "_-"):
            taken.append(self.take())
        return "".join(taken)

    def hand_until(self, marker: str, emit: Callable[[str], None]) -> Taking[bool]:
        """Take text up to ``marker``, handing it on as it comes, and the marker; return whether that came."""
        while (start := self._buffer.find(marker, self._next)) < 0:
            keep = overlap(self._buffer[self._next :], marker)
            emit(self.take(self._num_left - keep))
            if self.is_over:
                self.skip_rest()
                return False
            yield
        emit(self.take(start - self._next))
        self.take(len(marker))
        return True

    def skip_rest(self) -> None:
        """Take all that is left."""
        self.take(self._num_left)

    def show_rest(self) -> Reading:
        """Show everything to the end of the output."""
        while True:
            self._show_next(self._num_left)
            if self.is_over:
                return
            yield

    def take_string(self) -> Taking[str | None]:
        """Take a JSON string and return its value; None if there is none."""
        taken = []
        if (yield from self.peek()) != '"':
            return None
        taken.append(self.take())
        while (char := (yield from self.peek())) != '"':
            if not char:
                return None
            taken.append(self.take())
            if char == "\\" and (yield from self.peek()):
                taken.append(self.take())
        taken.append(self.take())
        try:
            value: str = json.loads("".join(taken), strict=False)
        except ValueError:
            return None
        return value

    def take_value(self, emit: Callable[[str], None]) -> Taking[bool]:
        """Take a JSON value, handing on its text as it comes; return whether there was a whole one."""
        depth, is_string, is_scalar = 0, False, (yield from self.peek()) not in _OPENINGS
        while char := (yield from self.peek()):
            if is_scalar and char in _SCALAR_ENDS:
                return True
            if is_string and char == "\\":
                emit(self.take())
                yield from self.peek()
            elif char == '"':
                is_string = not is_string
            elif not is_string:
                depth += (char in "{[") - (char in "}]")
            emit(self.take())
            if depth == 0 and not is_string and not is_scalar:
                return True
        return False

    def take_arguments(self) -> Reading:
        """Take the JSON object that follows as the arguments of the call, which has none if something else follows."""
        yield from self.skip_space()
        following = yield from self.peek()
        if following == "{":
            yield from self.take_value(self.add_arguments)
        elif following:
            self.add_arguments("{}")

    @property
    def _num_left(self) -> int:
        return len(self._buffer) - self._next

    def _is_beginning_of(self, text: str) -> bool:
        return self._num_left <= len(text) and text.startswith(self._buffer[self._next :])

    def _show_next(self, count: int) -> None:
        offset = self._offset
        self._show(self.take(count), offset)

    def _show(self, text: str, offset: int) -> None:
        if text:
            self._end_arguments()
            self._events.append(Text(text, offset))

    def _end_arguments(self) -> None:
        if self._arguments:
            self._events.append(CallArguments("".join(self._arguments)))
            self._arguments = []
