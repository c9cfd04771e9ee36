"""What the operations of a template may make: bounds by name, and the names that a template may use at all.

A template of a model uses few of Jinja's filters and of Python's methods. What none uses is not offered, so that what
is can be bounded: everything that makes much out of little is, and everything else makes about as much as it is given.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateError

from services.gateway.text.meter import Meter


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILTERS = _words(
    "abs capitalize center count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string "
    "striptags sum title tojson trim truncate unique upper wordcount"
)
GLOBALS = frozenset(("dict", "joiner", "namespace", "range"))
METHODS: Mapping[type, frozenset[str]] = {
    str: _words(
        "capitalize casefold center count endswith expandtabs find format index isalnum isalpha isascii isdecimal "
        "isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
        "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith "
        "strip swapcase title upper zfill"
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    bytes: frozenset(),
    int: frozenset(),
    float: frozenset(("is_integer",)),
}
"""Of values of these types; others, as the loop, offer what Jinja's own sandbox lets through."""
_MAX_INTEGER_BITS = 4096
_MAX_DIGITS = 100


def is_offered(value: object, name: str) -> bool:
    """Return whether a template may use the attribute ``name`` of ``value``."""
    return next((name in names for kind, names in METHODS.items() if isinstance(value, kind)), True)


def _bound_sum(meter: Meter, left: Any, right: Any) -> None:
    if _has_length(left) and _has_length(right):
        meter.require_room(len(left) + len(right))


def _bound_product(meter: Meter, left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if _has_length(value) and isinstance(times, int):
            weight = meter.weigh(value)
            meter.require_room((weight.num_elements + weight.num_characters) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int):
        _require_small(left.bit_length() + right.bit_length())


def _bound_power(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _require_small(left.bit_length() * max(right, 0))


def bound_format(meter: Meter, pattern: Any, *values: Any, **named: Any) -> None:
    """A width stands in the pattern as digits, or is taken from the values."""
    meter.weigh((*values, *named.values()))
    if isinstance(pattern, str):
        for printf, braces in _WIDTHS.findall(pattern):
            width = printf or braces
            if "*" in width or "{" in width:
                raise TemplateError("a width is taken from a value")
            meter.require_room(sum(int(number[:9]) for number in _DIGITS.findall(width)))


def _bound_width(meter: Meter, text: Any, width: Any = 0, *others: Any, **named: Any) -> None:
    meter.weigh(text)
    for value in (width, named.get("width", 0), named.get("tabsize", 0)):
        if isinstance(value, int):
            meter.require_room(value * (str(text).count("\t") + 1))


def _bound_indent(meter: Meter, text: Any, width: Any = 4, *others: Any, **named: Any) -> None:
    meter.weigh(text)
    num_columns = len(width) if isinstance(width, str) else int(width)
    meter.require_room(len(str(text)) + num_columns * (str(text).count("\n") + 1))


def _bound_round(meter: Meter, value: Any, precision: Any = 0, *others: Any, **named: Any) -> None:
    if isinstance(precision, int) and precision > _MAX_DIGITS:
        raise TemplateError("a number has too many digits")


def _bound_total(meter: Meter, values: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise TemplateError("only numbers can be summed up")


def _bound_replace(meter: Meter, text: Any, old: Any = "", new: Any = "", *others: Any, **named: Any) -> None:
    meter.weigh((text, old, new))
    meter.require_room(len(str(text)) + str(text).count(str(old)) * len(str(new)))


def _bound_joined(meter: Meter, values: Any, between: Any) -> None:
    if _has_length(values):
        meter.require_room(len(values) * len(str(between)) + meter.weigh(values).num_characters)


def _has_length(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _require_small(num_bits: int) -> None:
    if num_bits > _MAX_INTEGER_BITS:
        raise TemplateError("a number becomes too large")


_WIDTHS = re.compile(r"%(?:\([^)]*\))?[-+ #]*([0-9.*]+)|\{[^{}]*:([^{}]*[0-9{][^}]*)")
_DIGITS = re.compile(r"[0-9]+")
TEXT_BOUNDS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "expandtabs"), _bound_width),
    "format": bound_format,
    "indent": _bound_indent,
    "replace": _bound_replace,
    "round": _bound_round,
    "string": lambda meter, value: meter.weigh(value) and None,
    "sum": _bound_total,
    "join": lambda meter, values, between="", *others, **named: (
        _bound_joined(meter, between, values) if isinstance(values, str) else _bound_joined(meter, values, between)
    ),
}
"""Methods of texts and filters of the same names that can make much out of little."""
OPERATOR_BOUNDS: dict[str, Callable[[Meter, Any, Any], None]] = {
    "+": _bound_sum,
    "*": _bound_product,
    "**": _bound_power,
    "%": bound_format,
}
