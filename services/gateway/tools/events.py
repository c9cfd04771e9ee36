"""What is read out of an answer in which a model may call tools."""

from collections.abc import Generator
from dataclasses import dataclass


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

Reading = Generator[None, None, None]
"""Runs until it needs more text."""
