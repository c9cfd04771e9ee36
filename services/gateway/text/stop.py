"""Stop strings over text that comes in pieces."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)  # not frozen: one is made for each token, at four times the cost
class StopResult:
    """What may be shown now, and whether a stop string was met."""

    text: str
    hit: bool = False


class StopStrings:
    """Cuts a text before the first stop string; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> StopResult:
        """Return the part of all text so far that is safe to show and was not shown yet."""
        if not self._stops:
            return StopResult(text)
        text = self._held + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self._held = ""
            _, start = min(matches)  # the one that was complete first, however the text was cut into pieces
            return StopResult(text[:start], hit=True)
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return StopResult(text[: len(text) - num_held])

    def pass_through(self, text: str) -> StopResult:
        """Return all text without looking for stop strings (fewer tokens than ``min_tokens``)."""
        text, self._held = self._held + text, ""
        return StopResult(text)

    def flush(self) -> str:
        """Return what was held back; it did not become a stop string."""
        text, self._held = self._held, ""
        return text

    def _num_held(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        return max((overlap(text, stop) for stop in self._stops), default=0)


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that begins ``stop`` and is not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
