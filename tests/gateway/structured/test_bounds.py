"""Schemas within bounds: each bound has a name, and only what is a schema counts."""

from typing import Any

import pytest

from services.errors import InvalidRequest
from services.gateway.structured import bounds
from services.gateway.structured.bounds import SchemaBudget

TEXT = {"type": "string"}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def properties(count: int, prefix: str = "p") -> dict[str, Any]:
    return {"properties": {f"{prefix}{index}": {} for index in range(count)}}


def alternatives(keyword: str, count: int) -> dict[str, Any]:
    return {keyword: [{} for _ in range(count)]}


FIT = [
    {},
    nested(bounds.MAX_DEPTH),
    properties(bounds.MAX_PROPERTIES_OF_ONE),
    {"anyOf": [properties(bounds.MAX_PROPERTIES_OF_ONE) for _ in range(5)]},
    alternatives("oneOf", bounds.MAX_ALTERNATIVES),
    {"enum": list(range(bounds.MAX_ENUM_VALUES))},
    {"enum": ["x" * 60_000]},
    {"anyOf": [{"pattern": "x" * bounds.MAX_PATTERN_LENGTH} for _ in range(bounds.MAX_PATTERNS)]},
    {"multipleOf": bounds.MAX_MULTIPLE_OF},
    {"properties": {"pattern": TEXT, "properties": TEXT, "enum": TEXT, "multipleOf": TEXT}},
    {"const": nested(60), "default": properties(3_000), "examples": [properties(3_000)]},
]
PASSED: list[tuple[dict[str, Any], str]] = [
    ({"description": "x" * bounds.MAX_BYTES}, "bytes"),
    (nested(bounds.MAX_DEPTH + 1), "levels deep"),
    (properties(bounds.MAX_PROPERTIES_OF_ONE + 1), "properties in one object"),
    ({"anyOf": [properties(bounds.MAX_PROPERTIES_OF_ONE) for _ in range(6)]}, "properties, at most"),
    *((alternatives(keyword, bounds.MAX_ALTERNATIVES + 1), "anyOf") for keyword in ("anyOf", "oneOf", "allOf")),
    ({"enum": list(range(bounds.MAX_ENUM_VALUES + 1))}, "enum values"),
    ({"allOf": [{"pattern": f"a{index}"} for index in range(bounds.MAX_PATTERNS + 1)]}, "patterns and formats"),
    ({"allOf": [{"format": "email"} for _ in range(bounds.MAX_PATTERNS + 1)]}, "patterns and formats"),
    ({"patternProperties": {f"a{index}": {} for index in range(bounds.MAX_PATTERNS + 1)}}, "patterns and formats"),
    ({"pattern": "x" * (bounds.MAX_PATTERN_LENGTH + 1)}, "characters in a pattern"),
    ({"$defs": {"a": {"not": {"multipleOf": bounds.MAX_MULTIPLE_OF + 1}}}}, "multipleOf may be at most"),
]


@pytest.mark.parametrize("schema", FIT)
def test_what_is_within_the_bounds_passes(schema: dict[str, Any]) -> None:
    SchemaBudget().add(schema, "x")


@pytest.mark.parametrize(("schema", "bound"), PASSED)
def test_the_bound_that_is_passed_is_named(schema: dict[str, Any], bound: str) -> None:
    with pytest.raises(InvalidRequest, match=bound) as raised:
        SchemaBudget().add(schema, "tools[3]")
    assert raised.value.param == "tools[3]"


def test_the_schemas_of_one_request_count_together() -> None:
    budget = SchemaBudget()
    for _ in range(5):
        budget.add(properties(bounds.MAX_PROPERTIES_OF_ONE), "first")
    with pytest.raises(InvalidRequest, match="properties, at most") as raised:
        budget.add(properties(1), "last")
    assert raised.value.param == "last"


@pytest.mark.parametrize("odd", [{"properties": 5}, {"anyOf": {}}, {"enum": "x"}, {"pattern": 5}, {"multipleOf": "x"}])
def test_keywords_of_the_wrong_type_are_left_to_the_compiler(odd: dict[str, Any]) -> None:
    SchemaBudget().add(odd, "x")
