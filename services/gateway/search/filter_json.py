"""Filters of searches: JSON to what decides on a file."""

from typing import Any

from services.errors import InvalidRequest
from services.gateway.search.filters import Comparison, Compound, Filter
from services.gateway.web.problems import Problem, unsupported_value, wrong_type

_COMPARISONS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
_COMPOUNDS = ("and", "or")
_FIELDS = {"comparison": {"type", "key", "value"}, "compound": {"type", "filters"}}


def filter_of(value: Any, path: str = "filters") -> Filter:
    """Return the filter in ``value``, whose depth is bounded already.

    Raises:
        InvalidRequest: it is none; ``param`` names the wrong part.
    """
    if not isinstance(value, dict):
        raise _invalid(wrong_type(path, "an object", value), path)
    if "type" not in value:
        raise _missing(f"{path}.type")
    kind = value["type"]
    if kind in _COMPOUNDS:
        _check_fields(value, "compound", path)
        parts = value["filters"]
        if not isinstance(parts, list):
            raise _invalid(wrong_type(f"{path}.filters", "an array", parts), f"{path}.filters")
        filters = [filter_of(part, f"{path}.filters[{place}]") for place, part in enumerate(parts)]
        return Compound(filters, needs_all=kind == "and")
    if kind not in _COMPARISONS:
        raise _invalid(unsupported_value(kind, [*_COMPARISONS, *_COMPOUNDS]), f"{path}.type")
    _check_fields(value, "comparison", path)
    return _comparison(kind, value["key"], value["value"], path)


def _comparison(kind: str, key: Any, value: Any, path: str) -> Comparison:
    if not isinstance(key, str):
        raise _invalid(wrong_type(f"{path}.key", "a string", key), f"{path}.key")
    values = value if kind in ("in", "nin") else [value]
    if not isinstance(values, list):
        raise _invalid(wrong_type(f"{path}.value", "an array", value), f"{path}.value")
    for each in values:
        if not isinstance(each, str | int | float | bool):
            expected = "a string, a number or a boolean"
            raise _invalid(wrong_type(f"{path}.value", expected, each), f"{path}.value")
    return Comparison(key, kind, value)


def _check_fields(value: dict[str, Any], kind: str, path: str) -> None:
    for name in sorted(_FIELDS[kind] - value.keys()):
        raise _missing(f"{path}.{name}")
    for name in sorted(value.keys() - _FIELDS[kind]):
        problem = Problem(f"Unknown parameter: '{path}.{name[:64]}'.", "unknown_parameter")
        raise _invalid(problem, f"{path}.{name[:64]}")


def _missing(path: str) -> InvalidRequest:
    return _invalid(Problem(f"Missing required parameter: '{path}'.", "missing_required_parameter"), path)


def _invalid(problem: Problem, param: str) -> InvalidRequest:
    return InvalidRequest(problem.message, param=param, code=problem.code)
