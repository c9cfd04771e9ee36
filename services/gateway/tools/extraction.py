"""The calls of one answer, found in its text as it comes."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.gateway.text.choice import Piece, TokenText
from services.gateway.text.stop import StopStrings
from services.gateway.tools.events import CallArguments, CallStarted, Text
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import CallRules, ToolFormat
from services.gateway.web.exchange import new_token


@dataclass(frozen=True)
class CallOpening:
    """A call begins."""

    call_index: int
    call_id: str
    name: str


@dataclass(frozen=True)
class CallPiece:
    """More of the arguments of a call, as JSON text."""

    call_index: int
    arguments: str


Extracted = Piece | CallOpening | CallPiece


class CallExtraction:
    """Tells text from calls. White space around calls is dropped; stop strings are looked for in the text only."""

    def __init__(self, tool_format: ToolFormat, rules: CallRules, stops: Sequence[str]) -> None:
        self._feed = Feed()
        self._reading = tool_format.read(self._feed, rules.schemas)
        self._rules = rules
        self._stops = StopStrings(stops)
        self._space: list[Text] = []
        """White space that is text if text follows."""
        self._unshown: deque[Text] = deque()
        """What may be shown once it is known to begin no stop string."""
        self._tokens: deque[TokenText] = deque()
        self.num_calls = 0
        self.has_stopped = False
        """Whether a stop string was met, or a call more than allowed; nothing may be pushed afterwards."""

    def push(self, piece: Piece) -> list[Extracted]:
        """Return what more of the output shows."""
        self._tokens.extend(piece.tokens)
        self._feed.add(piece.text)
        next(self._reading, None)
        return list(self._extracted())

    def finish(self) -> list[Extracted]:
        """Return what was held back, at the end of the output."""
        if self.has_stopped:
            return []
        self._feed.is_over = True
        next(self._reading, None)
        shown = list(self._extracted())
        if not self.has_stopped and not self.num_calls:
            shown += [piece for space in self._space for piece in self._shown(space)]
        if not self.has_stopped:
            shown += self._pieces(self._stops.flush())
        return shown

    def _extracted(self) -> Iterator[Extracted]:
        for event in self._feed.events():
            if self.has_stopped:
                return
            match event:
                case Text():
                    yield from self._text(event)
                case CallStarted(name):
                    yield from self._opening(name)
                case CallArguments(arguments):
                    yield CallPiece(self.num_calls - 1, arguments)

    def _text(self, event: Text) -> Iterator[Piece]:
        if self._rules.is_required:
            return  # a call that was cut before its name was known
        body = event.text.rstrip()
        space = Text(event.text[len(body) :], event.offset + len(body))
        if body:
            for each in (*self._space, Text(body, event.offset)):
                yield from self._shown(each)
            self._space = []
        if space.text:
            self._space.append(space)

    def _opening(self, name: str) -> Iterator[Extracted]:
        self._space = []
        yield from self._pieces(self._stops.flush())
        if self.num_calls == self._rules.max_calls:
            self.has_stopped = True
            return
        self.num_calls += 1
        yield CallOpening(self.num_calls - 1, f"call_{new_token()}", name)

    def _shown(self, text: Text) -> list[Piece]:
        if self.has_stopped:
            return []
        self._unshown.append(text)
        result = self._stops.push(text.text)
        self.has_stopped = result.hit
        return self._pieces(result.text)

    def _pieces(self, text: str) -> list[Piece]:
        """Return ``text``, which is the beginning of what was not shown, with its tokens."""
        tokens: list[TokenText] = []
        num_left = len(text)
        while num_left:
            part = self._unshown.popleft()
            num_shown = min(num_left, len(part.text))
            num_left -= num_shown
            end = part.offset + num_shown
            tokens += self._tokens_between(part.offset, end)
            if num_shown < len(part.text):
                self._unshown.appendleft(Text(part.text[num_shown:], end))
        return [Piece(text, tuple(tokens))] if text else []

    def _tokens_between(self, start: int, end: int) -> Iterator[TokenText]:
        """Take the tokens of a part of the output; those before it, of calls and what is hidden, are dropped."""
        while self._tokens and self._tokens[0].offset < end:
            token = self._tokens.popleft()
            if token.offset >= start:
                yield token
