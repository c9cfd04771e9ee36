"""Mistral up to tokenizer version 7: one JSON array of calls behind a special token.

[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
"""

from services.gateway.tools.call_object import take_call
from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import CallSyntax, Schemas

TAG, ARGUMENTS_TAG = "[TOOL_CALLS]", "[ARGS]"


class Mistral:
    """Reads and describes the format."""

    name = "mistral"
    syntax = CallSyntax(
        opening=f"{TAG}[",
        prefix='{"name": "NAME", "arguments": ',
        suffix="}",
        separator=", ",
        closing="]",
        markers=(TAG,),
        trigger=TAG,
        id_length=9,
    )

    def is_used_by(self, template: str) -> bool:
        """Look for the token, without that of later versions."""
        return TAG in template and ARGUMENTS_TAG not in template

    def read(self, feed: Feed, schemas: Schemas) -> Reading:
        """Find the token."""
        while (yield from feed.show_until(TAG)):
            yield from feed.skip_space()
            has_more = yield from feed.follows("[")
            while has_more:
                yield from feed.skip_space()
                if not (yield from take_call(feed, schemas)):
                    break
                feed.mark()
                yield from feed.skip_space()
                has_more = yield from feed.follows(",")
                if not has_more and (yield from feed.follows("]")):
                    feed.mark()
            feed.give_back()
