"""Schemas that refer to others, apart from the whole of which they are a part."""

from collections.abc import Mapping
from typing import Any

from services.gateway.structured.bounds import DATA, MAPS
from services.gateway.tools.bare_values import referred
from services.gateway.tools.format import Schema

_DEFINITIONS = ("$defs", "definitions")


class Definitions:
    """What the parts of one schema refer to within it; each of them is read once, however many need it."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._names: dict[str, str] = {}
        """Of definitions, by the reference to them."""
        self._read: dict[str, tuple[Any, list[str]]] = {}
        """By the reference to it, what a definition says with references by name, and all of these."""

    def self_contained(self, schema: Schema) -> Schema:
        """Return a schema that says by itself what ``schema`` says within the whole, with no more than it refers to.

        References that name nothing stay as they are.
        """
        pending = list[str]()
        contained = self._named(schema, pending)
        definitions: dict[str, Any] = {}
        while pending:
            reference = pending.pop()
            if self._names[reference] in definitions:
                continue
            definitions[self._names[reference]], further = self._definition(reference)
            pending += further
        return {**contained, "$defs": definitions} if definitions else contained

    def _definition(self, reference: str) -> tuple[Any, list[str]]:
        if reference not in self._read:
            further = list[str]()
            self._read[reference] = (self._named(referred(reference, self._root), further), further)
        return self._read[reference]

    def _named(self, schema: Any, found: list[str]) -> Any:
        """Return a schema whose references, added to ``found``, are by name; without definitions of its own."""
        if not isinstance(schema, Mapping):
            return schema
        return {
            keyword: self._value(keyword, value, found)
            for keyword, value in schema.items()
            if keyword not in _DEFINITIONS
        }

    def _value(self, keyword: str, value: Any, found: list[str]) -> Any:
        if keyword in DATA:
            return value
        if keyword == "$ref":
            return self._reference(value, found)
        if keyword in MAPS and isinstance(value, Mapping):
            return {name: self._named(each, found) for name, each in value.items()}
        return [self._named(each, found) for each in value] if isinstance(value, list) else self._named(value, found)

    def _reference(self, value: Any, found: list[str]) -> Any:
        if not isinstance(value, str) or referred(value, self._root) is None:
            return value
        found.append(value)
        return f"#/$defs/{self._names.setdefault(value, str(len(self._names)))}"
