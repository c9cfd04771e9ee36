"""Formats that write a call's name between markers, and its arguments as JSON behind them: DeepSeek, later Mistrals."""

from dataclasses import dataclass

from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed, Taking
from services.gateway.tools.format import NAME, CallSyntax, Schemas

_MAX_NAME_LENGTH = 128


@dataclass(frozen=True)
class NamedCalls:
    """Reads and describes one such format; ``prefix`` is split at the name."""

    name: str
    syntax: CallSyntax
    signs: tuple[str, ...]
    """What a template that uses the format holds."""
    others: tuple[str, ...] = ()
    """What tells it from a relative."""

    def is_used_by(self, template: str) -> bool:
        """Look for the signs."""
        return all(sign in template for sign in self.signs) and not any(other in template for other in self.others)

    def read(self, feed: Feed, schemas: Schemas) -> Reading:
        """Find the opening, or the first call where there is none; then calls until something else comes."""
        opening, before = self.syntax.opening, self._parts[0]
        while (yield from feed.show_until(opening or before)):
            if opening and not (yield from feed.follows(before)):
                feed.give_back()
                continue
            while (yield from self._take_call(feed, schemas)):
                feed.mark()
                yield from feed.skip_space()
                if not (yield from feed.follows(before)):
                    yield from feed.skip(self.syntax.closing)
                    feed.mark()
                    break
            feed.give_back()

    def _take_call(self, feed: Feed, schemas: Schemas) -> Taking[bool]:
        name = yield from feed.take_until(self._parts[1], max_length=_MAX_NAME_LENGTH)
        if name is None or name.strip() not in schemas:
            return False
        feed.start_call(name.strip())
        yield from feed.skip_space()
        following = yield from feed.peek()
        if following == "{":
            yield from feed.take_value(feed.add_arguments)
        elif following:
            feed.add_arguments("{}")
        yield from feed.skip_space()
        yield from feed.skip(self.syntax.suffix.lstrip())
        return True

    @property
    def _parts(self) -> tuple[str, str]:
        """What stands before and behind a name."""
        before, _, behind = self.syntax.prefix.partition(NAME)
        return before, behind
