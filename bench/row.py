"""A row of the table, and what is known of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = Mapping[str, float]
"""By row name."""


@dataclass(frozen=True)
class Goal:
    """What a figure is to be: at most or at least ``limit``, or that many times a peer's."""

    limit: float
    is_most: bool = False
    peer: str | None = None
    """Name of the peer whose figure ``limit`` multiplies."""

    def answer(self, value: float, peers: Figures) -> str:
        """Return ``yes`` or ``no``, with the multiple of the peer's figure that ``value`` is.

        It is empty without that figure. ``peers`` are by peer name.
        """
        if self.peer is None:
            return self._is_met(value)
        if self.peer not in peers:
            return ""
        ratio = value / peers[self.peer]
        return f"{self._is_met(ratio)} ({ratio:.2f}x)"

    def _is_met(self, value: float) -> str:
        return "yes" if (value <= self.limit if self.is_most else value >= self.limit) else "no"

    def __str__(self) -> str:
        sign = "<=" if self.is_most else ">="
        return f"{sign} {self.limit:g}" if self.peer is None else f"{sign} {self.limit:g}x {self.peer}"


@dataclass(frozen=True)
class Row:
    """One line."""

    name: str
    what: str
    unit: str
    goals: tuple[Goal, ...] = ()


class Results:
    """What all rounds showed: figures by system, then by row, and which systems failed."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = {}
        self.failures: dict[str, str] = {}
        """What the last failure of a system was, by its name."""

    def add(self, system: str, figures: Figures) -> None:
        """Add what was measured of a system."""
        rows = self._values.setdefault(system, {})
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)

    def fail(self, system: str, reason: str) -> None:
        """Note that a system could not be measured."""
        self.failures[system] = reason

    @property
    def systems(self) -> Sequence[str]:
        """All systems, in the order in which they were measured first, then those that were never measured."""
        return [*dict.fromkeys((*self._values, *self.failures))]

    def values(self, system: str, row: str) -> Sequence[float]:
        """Return all values of a row; none if it was not measured."""
        return self._values.get(system, {}).get(row, [])

    def median(self, system: str, row: str) -> float | None:
        """Return the median of all values; None if it was not measured."""
        values = self.values(system, row)
        return statistics.median(values) if values else None

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """Return all values."""
        return self._values
