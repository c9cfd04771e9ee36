"""Counts what the rendering of a template has used up: steps, time, characters."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from services.errors import DeadlineExceeded
from services.telemetry.clock import Clock


@dataclass(frozen=True)
class RenderLimits:
    """How much one conversation may cost."""

    max_characters: int
    """Of the rendered text, and of any text on the way there."""
    max_steps: int = 1_000_000
    timeout_s: float = 10.0


@dataclass(frozen=True)
class Weight:
    """What a value holds."""

    num_elements: int
    num_characters: int
    depth: int


class RenderTooLarge(TemplateError):
    """The text became longer than any prompt can be."""


class Meter(threading.local):
    """What the rendering on this thread has used up."""

    def __init__(self, limits: RenderLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._num_steps = 0
        self._deadline_s = 0.0

    def start(self) -> None:
        """Begin a rendering."""
        self._num_steps = 0
        self._deadline_s = self._clock.now() + self._limits.timeout_s

    def step(self) -> None:
        """Count a step.

        Raises:
            TemplateError: there were too many.
            DeadlineExceeded: the rendering took too long.
        """
        self._num_steps += 1
        if self._num_steps > self._limits.max_steps:
            raise TemplateError(f"it takes more than {self._limits.max_steps} steps")
        if self._clock.now() > self._deadline_s:
            raise DeadlineExceeded("The prompt could not be rendered in time.")

    def require_room(self, num_characters: int) -> None:
        """Refuse a text, or a list, that is longer than any prompt."""
        if num_characters > self._limits.max_characters:
            raise RenderTooLarge(f"it makes more than {self._limits.max_characters} characters")

    def joined(self, pieces: Iterable[str]) -> str:
        """Return all pieces as one text."""
        return "".join(self._counted(pieces))

    def _counted(self, pieces: Iterable[str]) -> Iterator[str]:
        num_characters = 0
        for piece in pieces:
            num_characters += len(piece)
            self.require_room(num_characters)
            yield piece

    def weigh(self, value: Any) -> Weight:
        """Return what a value is as text; each list, object and element inside of it is a step.

        A few lists that hold one another twice are short to write, and as text longer than any prompt.
        """
        num_elements, num_characters, depth = 0, 0, 0
        todo = [(value, 1)]
        while todo:
            part, level = todo.pop()
            num_elements += 1
            depth = max(depth, level)
            if isinstance(part, Mapping):
                todo += [(inner, level + 1) for item in part.items() for inner in item]
            elif isinstance(part, list | tuple | set | frozenset):
                todo += [(inner, level + 1) for inner in part]
            else:
                num_characters += len(part) if isinstance(part, str) else 1
                self.require_room(num_elements + num_characters)
                continue
            self.step()
            self.require_room(num_elements + num_characters + len(todo))
        return Weight(num_elements, num_characters, depth)

    def as_text(self, value: Any) -> str:
        """Return ``str(value)``, unless that is longer than any prompt."""
        if not isinstance(value, str):
            self.weigh(value)
        return str(value)
