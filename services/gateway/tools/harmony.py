"""Harmony, which gpt-oss writes: an answer is messages on channels, and one with a recipient is a call.

    CHANNEL analysis MESSAGE thoughts END
    START assistant CHANNEL commentary to=functions.f CONSTRAIN json MESSAGE {"a": 1}      the end token CALL follows
    START assistant CHANNEL final MESSAGE the answer                                       the end token RETURN follows

START assistant of the first message is the end of the prompt. Models write the recipient before CHANNEL, too.
"""

import re

from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import CallSyntax, Schemas

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_END, _CONSTRAIN = "<|end|>", "<|constrain|>"
_RECIPIENT = " to=functions."
_MAX_HEADER_LENGTH = 256


class Harmony:
    """Reads and describes the format."""

    name = "harmony"
    syntax = CallSyntax(
        prefix=f"{_CHANNEL}commentary{_RECIPIENT}NAME {_CONSTRAIN}json{_MESSAGE}",
        suffix="",
        framing=(_START, _CHANNEL, _MESSAGE, _END, _CONSTRAIN),
        content_opening=_MESSAGE,
        answer=f"{_CHANNEL}final{_MESSAGE}",
        trigger=_RECIPIENT,
        max_calls=1,
    )

    def is_used_by(self, template: str) -> bool:
        """Look for the markers of channels."""
        return _CHANNEL in template and _MESSAGE in template

    def read(self, feed: Feed, schemas: Schemas) -> Reading:
        """Show what is said on other channels than that of thoughts; text without a channel is text."""
        feed.mark()
        has_begun = yield from feed.comes(_CHANNEL, _RECIPIENT)
        while has_begun or (yield from feed.show_until(_CHANNEL)):
            header = yield from feed.take_until(_MESSAGE, max_length=_MAX_HEADER_LENGTH)
            if header is not None:
                yield from _take_content(feed, header, schemas)
                feed.mark()
                has_begun = yield from feed.follows(_START)
            elif feed.is_over:
                feed.skip_rest()
                return
            else:
                feed.give_back()
                has_begun = False


def _take_content(feed: Feed, header: str, schemas: Schemas) -> Reading:
    """Take the content of a message and its end."""
    recipient = re.search(rf"{_RECIPIENT.strip()}([\w-]+)", header)
    if recipient is not None and recipient[1] in schemas:
        feed.start_call(recipient[1])
        yield from feed.take_arguments()
        yield from feed.hand_until(_END, _hide)
    elif "analysis" in re.split(r"\W+", header):
        yield from feed.hand_until(_END, _hide)
    else:
        yield from feed.show_until(_END)


def _hide(text: str) -> None:
    """Leave out what is no part of the answer."""
