"""Formats that write a call's name between markers, and its arguments as JSON behind them: DeepSeek, later Mistrals."""

from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed, Taking
from services.gateway.tools.format import NAME, Schemas, SignedFormat

_MAX_NAME_LENGTH = 128


class NamedCalls(SignedFormat):
    """Reads and describes one such format; ``prefix`` is split at the name."""

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
        yield from feed.take_arguments()
        yield from feed.skip_space()
        yield from feed.skip(self.syntax.suffix.lstrip())
        return True

    @property
    def _parts(self) -> tuple[str, str]:
        """What stands before and behind a name."""
        before, _, behind = self.syntax.prefix.partition(NAME)
        return before, behind
