"""What is common to all formats of tool calls: what a format says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.gateway.tools.events import Reading
from services.gateway.tools.feed import Feed

MAX_PARALLEL_CALLS = 16
"""Calls of one answer: a small model that may call on and on does so."""

Schema = Mapping[str, Any]
"""A JSON schema."""
Schemas = Mapping[str, Schema]
"""Functions that may be called, by name: the schema of their arguments, an object."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: Schema
    """Of the arguments, an object."""
    strict: bool = False
    """Whether keywords that cannot be enforced are refused; else they are ignored."""


@dataclass(frozen=True)
class CallRules:
    """What of an output is a call."""

    schemas: Schemas
    is_required: bool
    max_calls: int

    @classmethod
    def of_none(cls) -> "CallRules":
        """Return the rules of an answer that cannot call, and is to be read nevertheless."""
        return cls({}, is_required=False, max_calls=0)

    @property
    def as_json(self) -> dict[str, Any]:
        """The rules as plain values."""
        return {"names": dict(self.schemas), "is_required": self.is_required, "max_calls": self.max_calls}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "CallRules":
        """Read what ``as_json`` returned; older versions kept the names alone."""
        names = values["names"]
        schemas = names if isinstance(names, Mapping) else {name: {} for name in names}
        return cls(schemas, values["is_required"], values["max_calls"])


@dataclass(frozen=True)
class ToolUse:
    """What one request says of tools."""

    definitions: Sequence[Mapping[str, Any]]
    """All tools as the client described them, for the prompt."""
    callable: Sequence[Tool]
    """Those that may be called."""
    is_required: bool
    max_calls: int

    @property
    def rules(self) -> CallRules:
        """What it takes to read the answer."""
        schemas = {tool.name: tool.parameters for tool in self.callable}
        return CallRules(schemas, self.is_required, self.max_calls)


@dataclass(frozen=True)
class ParameterSyntax:
    """How arguments are written that are no JSON object but follow one another, each text as it is::

    prefix value suffix separator  prefix value suffix separator
    """

    prefix: str
    """``NAME`` stands for the parameter's name."""
    suffix: str
    """Ends a value: no text holds it."""
    separator: str = ""


@dataclass(frozen=True)
class CallSyntax:
    """How calls are written::

    opening  prefix arguments suffix  separator  prefix arguments suffix  closing
    """

    prefix: str
    """Before the arguments; ``NAME`` stands for the function's name."""
    suffix: str
    parameters: ParameterSyntax | None = None
    """How the arguments are written; None for a JSON object."""
    opening: str = ""
    separator: str = ""
    closing: str = ""
    markers: tuple[str, ...] = ()
    """Texts in it that are single tokens of the models that use the format; special ones are written as such."""
    framing: tuple[str, ...] = ()
    """The same of texts that every answer has around its parts, whether it calls or not."""
    content_opening: str = ""
    """The one of them behind which nothing is a call, to the next special token."""
    answer: str = ""
    """What stands before an answer that does not call."""
    trigger: str | None = None
    """What calls begin with, or what of their beginning other text does not hold; None if there is no such thing."""
    max_calls: int = MAX_PARALLEL_CALLS
    id_length: int | None = None
    """Letters and digits of a call's id, where the models' templates insist on a number."""


NAME = "NAME"


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

    def read(self, feed: Feed, schemas: Schemas) -> Reading:
        """Turn the whole output in ``feed`` into its events; calls of other functions than these are text."""


@dataclass(frozen=True)
class SignedFormat:
    """The part of a format that a template shows by what stands in it; the reading comes with the subclass."""

    name: str
    syntax: CallSyntax
    signs: tuple[str, ...]
    """What a template that uses the format holds."""
    others: tuple[str, ...] = ()
    """What tells it from a relative."""

    def is_used_by(self, template: str) -> bool:
        """Look for the signs."""
        return all(sign in template for sign in self.signs) and not any(other in template for other in self.others)
