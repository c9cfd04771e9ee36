"""Bounds on the JSON schemas of one request, so that nobody else pays for compiling and following them.

Within them everything that we tried compiles in less than a second; the deadline of the worker ends what does not
(docs/structured-outputs.md has the figures).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from services.errors import InvalidRequest

MAX_BYTES = 128 * 2**10
MAX_DEPTH = 32
MAX_PROPERTIES = 2_000
MAX_PROPERTIES_OF_ONE = 400
MAX_ALTERNATIVES = 500
MAX_ENUM_VALUES = 2_000
MAX_PATTERNS = 100
MAX_PATTERN_LENGTH = 512
MAX_MULTIPLE_OF = 1_000

Schema = Mapping[str, Any]

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value names schemas."""
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
DATA = ("enum", "const", "default", "example", "examples", "x-guidance")
"""Keywords whose value is no schema, whatever it looks like."""


class SchemaBudget:
    """What the schemas of one request have used up of its bounds."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._num_properties = 0
        self._num_alternatives = 0
        self._num_enum_values = 0
        self._num_patterns = 0

    def add(self, schema: Schema, param: str) -> None:
        """Count one more schema; ``param`` names it in errors.

        Raises:
            InvalidRequest: a bound is passed; the text names it.
        """
        self._num_bytes += len(orjson.dumps(schema))
        _require(self._num_bytes, MAX_BYTES, "bytes", param)
        level = [schema]
        for _ in range(MAX_DEPTH):
            for each in level:
                self._count(each, param)
            level = [child for each in level for child in _children(each)]
            if not level:
                return
        raise InvalidRequest(f"The schema nests more than {MAX_DEPTH} levels deep.", param=param)

    def _count(self, schema: Schema, param: str) -> None:
        properties = _named(schema, "properties")
        patterns = [schema.get("pattern"), *_named(schema, "patternProperties")]
        _require(len(properties), MAX_PROPERTIES_OF_ONE, "properties in one object", param)
        self._num_properties += len(properties)
        self._num_alternatives += sum(len(_listed(schema, keyword)) for keyword in _LISTS)
        self._num_enum_values += len(_listed(schema, "enum"))
        self._num_patterns += sum(pattern is not None for pattern in patterns) + ("format" in schema)
        _require(self._num_properties, MAX_PROPERTIES, "properties", param)
        _require(self._num_alternatives, MAX_ALTERNATIVES, "entries of anyOf, oneOf, allOf and prefixItems", param)
        _require(self._num_enum_values, MAX_ENUM_VALUES, "enum values", param)
        _require(self._num_patterns, MAX_PATTERNS, "patterns and formats", param)
        longest = max((len(pattern) for pattern in patterns if isinstance(pattern, str)), default=0)
        _require(longest, MAX_PATTERN_LENGTH, "characters in a pattern", param)
        factor = schema.get("multipleOf")
        if isinstance(factor, int | float) and abs(factor) > MAX_MULTIPLE_OF:
            raise InvalidRequest(f"A schema's multipleOf may be at most {MAX_MULTIPLE_OF}, not {factor}.", param=param)


def _children(schema: Schema) -> Iterator[Schema]:
    for keyword, value in schema.items():
        if keyword in DATA:
            continue
        if isinstance(value, dict):
            below = value.values() if keyword in MAPS else [value]
        else:
            below = value if isinstance(value, list) else []
        yield from (each for each in below if isinstance(each, dict))


def _named(schema: Schema, keyword: str) -> Mapping[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def _listed(schema: Schema, keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _require(count: int, limit: int, what: str, param: str) -> None:
    if count > limit:
        raise InvalidRequest(f"The schema has {count} {what}, at most {limit} are allowed.", param=param)
