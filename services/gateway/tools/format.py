"""What is common to all formats of tool calls: what a format says of itself, and what is read out of an answer."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from services.gateway.tools.feed import Feed

MAX_PARALLEL_CALLS = 16
"""Calls of one answer: a small model that may call on and on does so."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, an object."""
    strict: bool = False
    """Whether keywords that cannot be enforced are refused; else they are ignored."""


@dataclass(frozen=True)
class ToolUse:
    """What one request says of tools."""

    definitions: Sequence[Mapping[str, Any]]
    """All tools as the client described them, for the prompt."""
    callable: Sequence[Tool]
    """Those that may be called."""
    is_required: bool
    max_calls: int


@dataclass(frozen=True)
class Text:
    """More of the answer's text."""

    text: str
    offset: int
    """Characters of the output before it."""


@dataclass(frozen=True)
class CallStarted:
    """A call of the named function begins."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of the last call's arguments."""

    text: str


CallEvent = Text | CallStarted | CallArguments


@dataclass(frozen=True)
class CallSyntax:
    """How calls are written::

    opening  prefix arguments suffix  separator  prefix arguments suffix  closing
    """

    prefix: str
    """Before the arguments; ``NAME`` stands for the function's name."""
    suffix: str
    opening: str = ""
    separator: str = ""
    closing: str = ""
    markers: tuple[str, ...] = ()
    """Texts in it that are single tokens of the models that use the format; special ones are written as such."""
    trigger: str | None = None
    """What calls begin with and other text does not hold; None if there is no such thing."""
    max_calls: int = MAX_PARALLEL_CALLS
    id_length: int | None = None
    """Letters and digits of a call's id, where the models' templates insist on a number."""


NAME = "NAME"
Reading = Generator[None, None, None]
"""Runs until it needs more text."""


class ToolFormat(Protocol):
    """One way to write tool calls."""

    @property
    def name(self) -> str:
        """What settings call it."""

    @property
    def syntax(self) -> CallSyntax:
        """How calls are written where an answer is forced to be one."""

    def is_used_by(self, template: str) -> bool:
        """Whether a chat template asks for this format."""

    def read(self, feed: "Feed", names: frozenset[str]) -> Reading:
        """Turn the whole output in ``feed`` into its events; calls of other functions than ``names`` are text."""
