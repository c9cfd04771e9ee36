"""Llama 3.1 and 3.2: the whole answer is one call, as a JSON object.

{"name": "f", "parameters": {"a": 1}}
"""

from services.gateway.tools.call_object import take_call
from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import CallSyntax, Schemas

_TAG = "<|python_tag|>"


class Llama:
    """Reads and describes the format."""

    name = "llama"
    # Their templates refuse a history with several calls in one message.
    syntax = CallSyntax(prefix='{"name": "NAME", "parameters": ', suffix="}", markers=(_TAG,), max_calls=1)

    def is_used_by(self, template: str) -> bool:
        """Look for the tag of built-in tools, or for what the template says of others."""
        return _TAG in template or '"parameters": dictionary of argument name' in template

    def read(self, feed: Feed, schemas: Schemas) -> Reading:
        """Read calls from the beginning on, with semicolons between them; anything else is text."""
        feed.mark()
        yield from feed.skip_space()
        yield from feed.skip(_TAG)
        yield from feed.skip_space()
        while (yield from take_call(feed, schemas)):
            feed.mark()
            yield from feed.skip_space()
            if not (yield from feed.follows(";")):
                break
            yield from feed.skip_space()
        feed.give_back()
        yield from feed.show_rest()
