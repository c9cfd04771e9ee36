"""Formats that write a call's arguments one after the other, each between markers: Qwen3-Coder, GLM."""

import json
import re
from collections.abc import Callable

from services.gateway.tools.bare_values import TEXT, types_of, value_json, whole_schema
from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed, Taking
from services.gateway.tools.format import NAME, ParameterSyntax, Schema, Schemas, SignedFormat

MAX_NAME_LENGTH = 256
"""Characters of a parameter's name."""
_JSON_OPENINGS = ("{", "[", '"')


class ParameterCalls(SignedFormat):
    """Reads and describes one such format, whatever white space is between its markers; its trigger begins a call."""

    def read(self, feed: Feed, schemas: Schemas) -> Reading:
        """Find what begins a call."""
        while (yield from feed.show_until(str(self.syntax.trigger))):
            name = yield from self._take_name(feed)
            if name in schemas:
                feed.start_call(name)
                yield from self._take_arguments(feed, schemas[name])
            else:
                feed.give_back()

    def _take_name(self, feed: Feed) -> Taking[str]:
        """Take the name of a function and what is around it; empty if no arguments and no end of a call follow."""
        before, _, behind = self.syntax.prefix.removeprefix(str(self.syntax.trigger)).partition(NAME)
        if not (yield from _follow(feed, *_words(before))):
            return ""
        name = yield from feed.take_word()
        if not (yield from _follow(feed, *_words(behind))):
            return ""
        yield from feed.skip_space()
        first_parameter = self._parameters.prefix.partition(NAME)[0]
        return name if (yield from feed.comes(first_parameter, _words(self.syntax.suffix)[0])) else ""

    def _take_arguments(self, feed: Feed, schema: Schema) -> Reading:
        """Take arguments until the call ends; what is cut short stays so, what goes on with something else is ended."""
        before, _, behind = self._parameters.prefix.partition(NAME)
        end_of_name, *rest = _words(behind)
        lead = "{"
        while (yield from _follow(feed, *_words(before))):
            name = yield from feed.take_until(end_of_name, max_length=MAX_NAME_LENGTH)
            if name is None or not (yield from _follow(feed, *rest)):
                break
            yield from self._take_value(feed, f"{lead}{_quoted(name)}: ", _types_of_parameter(schema, name))
            lead = ", "
        end = "{}" if lead == "{" else "}"
        ending, *closing = _words(self.syntax.suffix)
        if (yield from _follow(feed, ending)):
            feed.add_arguments(end)
            for word in closing:
                yield from feed.skip_space()
                yield from feed.skip(word)
        elif feed.is_over:
            feed.skip_rest()
        else:
            feed.add_arguments(end)

    def _take_value(self, feed: Feed, lead: str, types: frozenset[str]) -> Reading:
        """Take a value and its end: a text as it comes, anything else once it is known what it is."""
        marker = self._parameters.suffix.lstrip("\n")
        is_on_lines = self._parameters.suffix != marker
        if is_on_lines:
            yield from feed.follows("\n")
        if types == TEXT:
            feed.add_arguments(f'{lead}"')
            shown = _Shown(lambda text: feed.add_arguments(_quoted(text)[1:-1]), is_on_lines=is_on_lines)
            if (yield from feed.hand_until(marker, shown)):
                feed.add_arguments('"')
            return
        taken: list[str] = []
        shown = _Shown(taken.append, is_on_lines=is_on_lines)
        if "string" not in types and (yield from feed.peek()) in _JSON_OPENINGS:
            yield from feed.take_value(shown)  # strings within it may hold the marker
        if (yield from feed.hand_until(marker, shown)):
            feed.add_arguments(lead + value_json("".join(taken), types))

    @property
    def _parameters(self) -> ParameterSyntax:
        assert self.syntax.parameters is not None
        return self.syntax.parameters


class _Shown:
    """Hands a value on, without the line break before its end."""

    def __init__(self, emit: Callable[[str], None], *, is_on_lines: bool) -> None:
        self._emit = emit
        self._break = "\n" if is_on_lines else ""
        self._held = ""

    def __call__(self, text: str) -> None:
        text = self._held + text
        body = text.removesuffix(self._break)
        self._held = text[len(body) :]
        self._emit(body)


def _words(text: str) -> list[str]:
    """Return the parts of markers between which white space does not matter."""
    return re.findall(r"[^\s>]*>|[^\s>]+", text)


def _follow(feed: Feed, *words: str) -> Taking[bool]:
    """Take words with white space before each; return whether all came."""
    for word in words:
        yield from feed.skip_space()
        if not (yield from feed.follows(word)):
            return False
    return True


def _types_of_parameter(schema: Schema, name: str) -> frozenset[str]:
    whole = whole_schema(schema, schema)
    return types_of(whole.get("properties", {}).get(name, whole.get("additionalProperties")), schema)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
