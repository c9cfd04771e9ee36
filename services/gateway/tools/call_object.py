"""A call as a JSON object, which several formats share: ``{"name": "f", "arguments": {...}}``."""

from services.gateway.tools.feed import Feed, Taking
from services.gateway.tools.format import Schemas

_ARGUMENTS = ("arguments", "parameters")


def take_call(feed: Feed, schemas: Schemas) -> Taking[bool]:
    """Take a call of one of ``schemas``, its arguments as they come; return False if that is not what comes.

    A call that began and is cut short or malformed stays one, as far as it came.
    """
    if not (yield from feed.follows("{")):
        return False
    call = _Call(feed)
    while (key := (yield from _next_key(feed))) is not None:
        if key == "name" and not call.is_started:
            name = yield from feed.take_string()
            if name is None or name not in schemas:
                return False
            call.start(name)
        elif key in _ARGUMENTS:
            yield from _take_arguments(feed, call)
        elif not (yield from feed.take_value(_ignore)):
            return call.is_started
    if (yield from feed.follows("}")):
        call.end()
    return call.is_started


class _Call:
    """Holds arguments back until the name is known."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._held: list[str] = []
        self._has_arguments = False
        self.is_started = False

    def start(self, name: str) -> None:
        self.is_started = True
        self._feed.start_call(name)
        self._feed.add_arguments("".join(self._held))

    def add(self, text: str) -> None:
        self._has_arguments = True
        if self.is_started:
            self._feed.add_arguments(text)
        else:
            self._held.append(text)

    def end(self) -> None:
        if self.is_started and not self._has_arguments:
            self._feed.add_arguments("{}")


def _next_key(feed: Feed) -> Taking[str | None]:
    """Take the next key and its colon; None where there is none."""
    yield from feed.skip_space()
    if (yield from feed.follows(",")):
        yield from feed.skip_space()
    key = yield from feed.take_string()
    yield from feed.skip_space()
    if key is None or not (yield from feed.follows(":")):
        return None
    yield from feed.skip_space()
    return key


def _take_arguments(feed: Feed, call: _Call) -> Taking[None]:
    match (yield from feed.peek()):
        case "{":
            yield from feed.take_value(call.add)
        case '"':  # some models write the object as JSON in a string
            call.add((yield from feed.take_string()) or "{}")
        case _:
            yield from feed.take_value(_ignore)


def _ignore(text: str) -> None:
    """Leave out what says nothing about the call."""
