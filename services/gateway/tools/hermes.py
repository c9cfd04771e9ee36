"""Hermes, Qwen and many others: each call is a JSON object between tags.

    <tool_call>
    {"name": "f", "arguments": {"a": 1}}
    </tool_call>

Also what models are asked for whose own template knows no tools.
"""

from services.gateway.tools.call_object import take_call
from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import CallSyntax, Schemas

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_OTHERS = ("<function=", "<arg_key>")
"""Formats that put something else between the same tags."""


class Hermes:
    """Reads and describes the format."""

    name = "hermes"
    syntax = CallSyntax(
        prefix=f'{OPEN}\n{{"name": "NAME", "arguments": ',
        suffix=f"}}\n{CLOSE}",
        separator="\n",
        markers=(OPEN, CLOSE),
        trigger=OPEN,
    )

    def is_used_by(self, template: str) -> bool:
        """Look for the tag."""
        return OPEN in template and not any(other in template for other in _OTHERS)

    def read(self, feed: Feed, schemas: Schemas) -> Reading:
        """Find the tags."""
        while (yield from feed.show_until(OPEN)):
            yield from feed.skip_space()
            if not (yield from take_call(feed, schemas)):
                feed.give_back()
                continue
            yield from feed.skip_space()
            yield from feed.skip(CLOSE)
