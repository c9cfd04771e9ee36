"""What is wrong with a value, in the words and with the codes of the OpenAI API."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from services.rpc.errors import shortened

_MAX_VALUE_LENGTH = 200


@dataclass(frozen=True)
class Problem:
    """A sentence about one value, and its code."""

    message: str
    code: str


def problem_of(details: ErrorDetails, path: str) -> Problem:
    """Return what pydantic found at ``path``; the rare kinds keep pydantic's own words."""
    describe = _DESCRIBED.get(details["type"])
    if describe is not None:
        return describe(path, details["input"], details.get("ctx", {}))
    if (expected := _EXPECTED_TYPES.get(details["type"])) is not None:
        return wrong_type(path, expected, details["input"])
    problem = details["msg"][:1].lower() + details["msg"][1:]
    return Problem(f"Invalid value for '{path}': {problem}.", "invalid_value")


def wrong_type(path: str, expected: str, value: Any) -> Problem:
    """Return that ``value`` is not ``expected``, such as "a string"."""
    got = next((name for kind, name in _TYPE_NAMES if isinstance(value, kind)), "another value")
    return Problem(f"Invalid type for '{path}': expected {expected}, but got {got} instead.", "invalid_type")


def unsupported_value(value: Any, supported: Sequence[str]) -> Problem:
    """Return that ``value`` is none of ``supported``."""
    quoted = [f"'{each}'" for each in supported]
    listed = " and ".join(quoted) if len(quoted) < 3 else f"{', '.join(quoted[:-1])}, and {quoted[-1]}"
    text = shortened(str(value), _MAX_VALUE_LENGTH)
    return Problem(f"Invalid value: '{text}'. Supported values are: {listed}.", "invalid_value")


def below_minimum(path: str, value: float, minimum: float) -> Problem:
    """Return that ``value`` is too small."""
    kind = "integer" if isinstance(value, int) else "decimal"
    return Problem(
        f"Invalid '{path}': {kind} below minimum value. Expected a value >= {minimum:g}, but got {value} instead.",
        f"{kind}_below_min_value",
    )


def above_maximum(path: str, value: float, maximum: float) -> Problem:
    """Return that ``value`` is too large."""
    kind = "integer" if isinstance(value, int) else "decimal"
    return Problem(
        f"Invalid '{path}': {kind} above maximum value. Expected a value <= {maximum:g}, but got {value} instead.",
        f"{kind}_above_max_value",
    )


def wrong_prefix(path: str, value: str, prefix: str) -> Problem:
    """Return that an id is one of another kind of object."""
    text = shortened(value, _MAX_VALUE_LENGTH)
    return Problem(f"Invalid '{path}': '{text}'. Expected an ID that begins with '{prefix}'.", "invalid_value")


def _missing(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return Problem(f"Missing required parameter: '{path}'.", "missing_required_parameter")


def _unknown(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return Problem(f"Unknown parameter: '{path}'.", "unknown_parameter")


def _long_string(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return Problem(
        f"Invalid '{path}': string too long. Expected a string with maximum length {context['max_length']}, "
        f"but got a string with length {len(value)} instead.",
        "string_above_max_length",
    )


def _no_match(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return Problem(
        f"Invalid '{path}': string does not match pattern. Expected a string that matches the pattern "
        f"'{context['pattern']}'.",
        "invalid_value",
    )


def _too_many(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    most, number = context["max_length"], len(value)
    if isinstance(value, dict):
        return Problem(
            f"Invalid '{path}': too many properties. Expected an object with at most {most} properties, "
            f"but got an object with {number} properties instead.",
            "object_above_max_properties",
        )
    return Problem(
        f"Invalid '{path}': array too long. Expected an array with maximum length {most}, "
        f"but got an array with length {number} instead.",
        "array_above_max_length",
    )


def _too_few(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return Problem(
        f"Invalid '{path}': empty array. Expected an array with minimum length {context['min_length']}, "
        f"but got an array with length {len(value)} instead.",
        "empty_array",
    )


def _small(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return below_minimum(path, value, context["ge"])


def _large(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return above_maximum(path, value, context["le"])


def _not_listed(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return unsupported_value(value, _quoted_in(context["expected"]))


def _wrong_tag(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    given = value["type"] if isinstance(value, dict) else value
    return unsupported_value(given, [tag.lstrip("~") for tag in _quoted_in(context["expected_tags"])])


def _no_tag(path: str, value: Any, context: Mapping[str, Any]) -> Problem:
    return _missing(path, value, context) if isinstance(value, dict) else wrong_type(path, "an object", value)


def _quoted_in(text: str) -> list[str]:
    """Return what stands between the single quotes of ``'a', 'b' or 'c'``."""
    return text.split("'")[1::2]


_DESCRIBED: Mapping[str, Callable[[str, Any, Mapping[str, Any]], Problem]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "string_too_long": _long_string,
    "string_pattern_mismatch": _no_match,
    "too_long": _too_many,
    "too_short": _too_few,
    "greater_than_equal": _small,
    "less_than_equal": _large,
    "literal_error": _not_listed,
    "union_tag_invalid": _wrong_tag,
    "union_tag_not_found": _no_tag,
}
_EXPECTED_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_TYPE_NAMES: Sequence[tuple[type | tuple[type, ...], str]] = (
    (type(None), "null"),
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a decimal"),
    (str, "a string"),
    (list, "an array"),
    (dict, "an object"),
)
