"""Which files a search may find, by their attributes."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Value = str | float | bool


class Filter(Protocol):
    """Decides on one file."""

    def accepts(self, attributes: Mapping[str, Any]) -> bool:
        """Return whether a file with these attributes may be found."""


@dataclass(frozen=True)
class Comparison:
    """One attribute compared with a value; a file without it, or with one of another type, is unequal to all."""

    key: str
    type: str
    value: Value | Sequence[Value]

    def accepts(self, attributes: Mapping[str, Any]) -> bool:
        """Return whether the attribute is as it shall be."""
        found = attributes.get(self.key)
        if self.type in ("ne", "nin"):
            return not self._is_among(found)
        if self.type in ("eq", "in"):
            return self._is_among(found)
        if isinstance(self.value, list | tuple) or not _are_alike(found, self.value):
            return False
        return bool(_ORDERS[self.type](found, self.value))

    def _is_among(self, found: Any) -> bool:
        values = self.value if isinstance(self.value, list | tuple) else [self.value]
        return any(_are_alike(found, value) and found == value for value in values)


@dataclass(frozen=True)
class Compound:
    """Several filters at once."""

    filters: Sequence[Filter]
    needs_all: bool

    def accepts(self, attributes: Mapping[str, Any]) -> bool:
        """Return whether all, or any, of the filters accept."""
        found = (each.accepts(attributes) for each in self.filters)
        return all(found) if self.needs_all else any(found)


_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def _are_alike(one: Any, other: Any) -> bool:
    """Return whether two values can be compared: texts, numbers or booleans, each with its like."""
    if isinstance(one, bool) or isinstance(other, bool):
        return isinstance(one, bool) and isinstance(other, bool)
    are_numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return are_numbers or (isinstance(one, str) and isinstance(other, str))
