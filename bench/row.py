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

    def is_met(self, value: float, peers: Figures) -> bool | None:
        """Return whether ``value`` reaches the goal; None without the peer's figure. ``peers`` are by peer name."""
        if self.peer is not None and self.peer not in peers:
            return None
        limit = self.limit * (peers[self.peer] if self.peer is not None else 1.0)
        return value <= limit if self.is_most else value >= limit

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
    """The figures of all rounds: by system, then by row."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, system: str, figures: Figures) -> None:
        """Add what one round showed of a system."""
        rows = self._values.setdefault(system, {})
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)

    @property
    def systems(self) -> Sequence[str]:
        """All systems, in the order in which they were measured first."""
        return [*self._values]

    def median(self, system: str, row: str) -> float | None:
        """Return the median over all rounds; None if it was not measured."""
        values = self._values.get(system, {}).get(row)
        return None if not values else statistics.median(values)

    def medians(self, system: str) -> Figures:
        """Return the medians of all rows of a system."""
        return {name: statistics.median(values) for name, values in self._values.get(system, {}).items()}

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """Return all values."""
        return self._values
