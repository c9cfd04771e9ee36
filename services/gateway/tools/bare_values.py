"""Values that are written without the quotes of JSON, so that their schema tells what is a text and what is JSON."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from services.gateway.tools.format import Schema

TEXT = frozenset(["string"])
_ALL_TYPES = TEXT | {"number", "integer", "boolean", "object", "array", "null"}
_MAX_PARTS = 8
"""References and parts that are followed from one schema."""
_MAX_BRANCHES = 16
"""Alternatives of one schema that are told apart; of more, anything may be true."""
_WORDS = {"True": "true", "False": "false", "None": "null"}
"""As templates that are rendered by Python write them in the history, and models after them."""


def whole_schema(schema: Any, root: Schema) -> Schema:
    """Return a schema with what it refers to in ``root`` and all that it is composed of; empty if it says nothing.

    Keywords that have no value of the kind that they should have are left out.
    """
    pending, whole = [schema], dict[str, Any]()
    for _ in range(_MAX_PARTS):
        if not pending:
            break
        part = _readable(pending.pop(0))
        if "$ref" in part:
            pending.append(referred(part.pop("$ref"), root))
        pending += part.pop("allOf", ())
        whole = {**part, **whole}
    return whole


def branches_of(schema: Any, root: Schema) -> list[Schema]:
    """Return whole schemas without alternatives, one of which a value fits."""
    pending, branches = [schema], list[Schema]()
    for _ in range(_MAX_BRANCHES):
        if not pending:
            return branches
        whole = dict(whole_schema(pending.pop(0), root))
        choices = [*whole.pop("anyOf", ()), *whole.pop("oneOf", ())]
        pending += [{**whole, **each} if isinstance(each, Mapping) else whole for each in choices]
        if not choices:
            branches.append(whole)
    return [{}]


def types_of(schema: Any, root: Schema) -> frozenset[str]:
    """Return the names of the JSON types that a value may have; a number may be an integer."""
    return frozenset().union(*map(types_of_branch, branches_of(schema, root)))


def types_of_branch(branch: Schema) -> frozenset[str]:
    """Return the same for a whole schema without alternatives."""
    types = _ALL_TYPES
    if (named := branch.get("type")) is not None:
        types = frozenset([named] if isinstance(named, str) else named)
    if "number" in types:
        types |= {"integer"}
    values = values_of_branch(branch)
    return types if values is None else types & _types_of_values(values)


def values_of_branch(branch: Schema) -> Sequence[Any] | None:
    """Return the only values that there may be; None if it names none."""
    values: Sequence[Any] | None = branch.get("enum", [branch["const"]] if "const" in branch else None)
    return values


def referred(reference: str, root: Schema) -> Any:
    """Return the schema that a reference within ``root`` names; None if it names nothing there."""
    found: Any = root
    anchor, *steps = reference.split("/")
    if anchor != "#":
        return None
    for step in steps:
        if isinstance(found, list):
            found = {str(index): each for index, each in enumerate(found)}
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if _is_schema(found) else None


def value_json(text: str, types: frozenset[str]) -> str:
    """Return the JSON text of a value: of one of ``types``, else a string if it may be one, else whatever it is."""
    stripped = text.strip()
    written = _WORDS.get(stripped, stripped)
    try:
        value = json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    is_text = isinstance(value, str) or not _types_of_values([value]) & types
    return json.dumps(text, ensure_ascii=False) if is_text and "string" in types else written


def _readable(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        return {}
    return {key: value for key, value in schema.items() if key not in _KINDS or _KINDS[key](value)}


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping | bool)


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "$ref": lambda value: isinstance(value, str),
    "type": lambda value: isinstance(value, str) or _is_list_of(str, value),
    "enum": lambda value: _is_list_of(object, value),
    "properties": lambda value: isinstance(value, Mapping) and all(map(_is_schema, value.values())),
    "required": lambda value: _is_list_of(str, value),
    "additionalProperties": _is_schema,
    "minLength": _is_count,
    "maxLength": _is_count,
} | dict.fromkeys(("allOf", "anyOf", "oneOf"), lambda value: isinstance(value, list) and all(map(_is_schema, value)))
"""Keywords that matter here, and what their values are."""


def _types_of_values(values: Iterable[Any]) -> frozenset[str]:
    return frozenset(_type_of_value(value) for value in values)


def _type_of_value(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
    return "object"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
