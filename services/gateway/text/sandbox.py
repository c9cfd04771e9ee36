"""A Jinja sandbox whose templates end: steps, time and text are counted, since nobody can stop a thread.

A step is an iteration of a loop, a loop filter's question or a call (of a macro, a function, a recursive loop).
What usual operations can make out of nothing (``'x' * n``, ``2 ** n``, texts doubled by ``+`` and ``~``) is bounded,
too; one that is not known here may still cost more than its step. Templates come with models, never from clients.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from services.errors import DeadlineExceeded
from services.telemetry.clock import Clock

_STEP = "tandem_step"
_CONCATENATED = "tandem_concatenated"
_MAX_INTEGER_BITS = 4096


@dataclass(frozen=True)
class RenderLimits:
    """How much one conversation may cost."""

    max_characters: int
    """Of the rendered text, and of any text on the way there."""
    max_steps: int = 1_000_000
    timeout_s: float = 10.0


class RenderTooLarge(TemplateError):
    """The text became longer than any prompt can be."""


class Meter(threading.local):
    """What the rendering on this thread has used up."""

    def __init__(self, limits: RenderLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._num_steps = 0
        self._deadline_s = 0.0

    def start(self) -> None:
        """Begin a rendering."""
        self._num_steps = 0
        self._deadline_s = self._clock.now() + self._limits.timeout_s

    def step(self) -> None:
        """Count a step.

        Raises:
            TemplateError: there were too many.
            DeadlineExceeded: the rendering took too long.
        """
        self._num_steps += 1
        if self._num_steps > self._limits.max_steps:
            raise TemplateError(f"it takes more than {self._limits.max_steps} steps")
        if self._clock.now() > self._deadline_s:
            raise DeadlineExceeded("The prompt could not be rendered in time.")

    def require_room(self, num_characters: int) -> None:
        """Refuse a text, or a list, that is longer than any prompt."""
        if num_characters > self._limits.max_characters:
            raise RenderTooLarge(f"it makes more than {self._limits.max_characters} characters")

    def joined(self, pieces: Iterable[str]) -> str:
        """Return all pieces as one text."""
        return "".join(self._counted(pieces))

    def _counted(self, pieces: Iterable[str]) -> Iterator[str]:
        num_characters = 0
        for piece in pieces:
            num_characters += len(piece)
            self.require_room(num_characters)
            yield piece


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates whose loops and calls are metered."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, meter: Meter, **options: Any) -> None:
        super().__init__(**options)
        self._meter = meter
        for name in _TEXT_BOUNDS.keys() & self.filters.keys():
            self.filters[name] = _bounded_filter(meter, name, self.filters[name])
        self.filters[_STEP] = _step_filter(meter)
        self.filters[_CONCATENATED] = _concatenate_filter(meter)

    def metered(self, source: str) -> nodes.Template:
        """Return the parsed template with a step in every iteration.

        Raises:
            TemplateError: it is not valid Jinja.
        """
        template = _Metering().visit(self.parse(source))
        assert isinstance(template, nodes.Template)
        return template

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call ``obj`` as the sandbox does; each call is a step."""
        self._meter.step()
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str) and name in _TEXT_BOUNDS:
            _TEXT_BOUNDS[name](self._meter, text, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's own form of ``str.format``, with bounded widths; None if ``value`` is not that."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @wraps(formatted)
        def bounded(*args: Any, **kwargs: Any) -> str:
            _bound_format(self._meter, value.__self__)
            return formatted(*args, **kwargs)

        return bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` unless its result would be out of proportion."""
        _BOUNDS[operator](self._meter, left, right)
        return super().call_binop(context, operator, left, right)


class _Metering(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_step(node.lineno), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_step(node.lineno), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _CONCATENATED, node.lineno)


def _step(line: int) -> nodes.Filter:
    return _filter(nodes.Const(True, lineno=line), _STEP, line)


def _filter(value: nodes.Expr, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=line)


def _step_filter(meter: Meter) -> Callable[[Context, bool], bool]:
    @pass_context  # so that the compiler does not compute it in advance
    def step(context: Context, value: bool) -> bool:
        meter.step()
        return value

    return step


def _concatenate_filter(meter: Meter) -> Callable[[Context, Sequence[Any]], str]:
    @pass_context
    def concatenate(context: Context, values: Sequence[Any]) -> str:
        return meter.joined(str(value) for value in values)

    return concatenate


def _bounded_filter(meter: Meter, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja that looks at its value and arguments first, whatever it is handed before them."""

    @wraps(apply)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        own = args[1:] if hasattr(apply, "jinja_pass_arg") else args
        _TEXT_BOUNDS[name](meter, *own, **kwargs)
        return apply(*args, **kwargs)

    return bounded


def _bound_sum(meter: Meter, left: Any, right: Any) -> None:
    if _has_length(left) and _has_length(right):
        meter.require_room(len(left) + len(right))


def _bound_product(meter: Meter, left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if _has_length(value) and isinstance(times, int):
            meter.require_room(len(value) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int):
        _require_small(left.bit_length() + right.bit_length())


def _bound_power(meter: Meter, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _require_small(left.bit_length() * max(right, 0))


def _bound_format(meter: Meter, pattern: Any, *values: Any, **named: Any) -> None:
    """A width stands in the pattern as digits, or is taken from the values."""
    if isinstance(pattern, str):
        for printf, braces in _WIDTHS.findall(pattern):
            width = printf or braces
            if "*" in width or "{" in width:
                raise TemplateError("a width is taken from a value")
            meter.require_room(sum(int(number[:9]) for number in _DIGITS.findall(width)))


def _bound_width(meter: Meter, text: Any, width: Any = 0, *others: Any, **named: Any) -> None:
    for value in (width, named.get("width", 0), named.get("tabsize", 0)):
        if isinstance(value, int):
            meter.require_room(value * (str(text).count("\t") + 1))


def _bound_indent(meter: Meter, text: Any, width: Any = 4, *others: Any, **named: Any) -> None:
    num_columns = len(width) if isinstance(width, str) else int(width)
    meter.require_room(len(str(text)) + num_columns * (str(text).count("\n") + 1))


def _bound_replace(meter: Meter, text: Any, old: Any = "", new: Any = "", *others: Any, **named: Any) -> None:
    meter.require_room(len(str(text)) + str(text).count(str(old)) * len(str(new)))


def _bound_joined(meter: Meter, values: Any, between: Any) -> None:
    if _has_length(values) and isinstance(between, str):
        meter.require_room(len(values) * len(between) + sum(len(value) for value in values if isinstance(value, str)))


def _has_length(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _require_small(num_bits: int) -> None:
    if num_bits > _MAX_INTEGER_BITS:
        raise TemplateError("a number becomes too large")


_WIDTHS = re.compile(r"%(?:\([^)]*\))?[-+ #]*([0-9.*]+)|\{[^{}]*:([^{}]*[0-9{][^}]*)")
_DIGITS = re.compile(r"[0-9]+")
_TEXT_BOUNDS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "expandtabs"), _bound_width),
    "format": _bound_format,
    "indent": _bound_indent,
    "replace": _bound_replace,
    "join": lambda meter, values, between="", *others, **named: (
        _bound_joined(meter, between, values) if isinstance(values, str) else _bound_joined(meter, values, between)
    ),
}
"""Methods of texts and filters of the same names that can make much out of little."""
_BOUNDS: dict[str, Callable[[Meter, Any, Any], None]] = {
    "+": _bound_sum,
    "*": _bound_product,
    "**": _bound_power,
    "%": _bound_format,
}
