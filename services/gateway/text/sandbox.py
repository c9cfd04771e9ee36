"""A Jinja sandbox whose templates end: steps, time and text are counted, since nobody can stop a thread.

A step is an iteration of a loop, a loop filter's question, a filter or a call (of a macro, a function, a recursive
loop). What operations can make out of little (``'x' * n``, ``2 ** n``, texts doubled by ``+`` and ``~``) is bounded
(``bounds.py``). Templates come with models, never from clients.
"""

import json
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from services.gateway.text.bounds import FILTERS, GLOBALS, OPERATOR_BOUNDS, TEXT_BOUNDS, bound_format, is_offered
from services.gateway.text.meter import Meter

_STEP = "tandem_step"
_CONCATENATED = "tandem_concatenated"


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates whose loops and calls are metered."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, meter: Meter, **options: Any) -> None:
        super().__init__(finalize=_finalize(meter), **options)
        self._meter = meter
        self.filters = {name: _bounded_filter(meter, name, self.filters[name]) for name in FILTERS}
        self.filters["tojson"] = _json_filter(meter)
        self.globals = {name: self.globals[name] for name in GLOBALS} | {"namespace": _Namespace}
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
        if isinstance(text, str) and name == "join" and args:
            args = ([*args[0]], *args[1:])
        if isinstance(text, str) and name in TEXT_BOUNDS:
            TEXT_BOUNDS[name](self._meter, text, *args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may see an attribute."""
        return is_offered(obj, attr) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandbox's own form of ``str.format``, with bounded widths; None if ``value`` is not that."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @wraps(formatted)
        def bounded(*args: Any, **kwargs: Any) -> str:
            bound_format(self._meter, value.__self__)
            return formatted(*args, **kwargs)

        return bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` unless its result would be out of proportion."""
        OPERATOR_BOUNDS[operator](self._meter, left, right)
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
        return meter.joined(meter.as_text(value) for value in values)

    return concatenate


def _bounded_filter(meter: Meter, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja that looks at its value and arguments first, whatever it is handed before them."""

    @wraps(apply)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        own = args[1:] if hasattr(apply, "jinja_pass_arg") else args
        meter.step()
        if name == "join" and own and not isinstance(own[0], str):
            own = ([*own[0]], *own[1:])  # what is counted here could be read only once
            args = (*args[: len(args) - len(own)], *own)
        if name in TEXT_BOUNDS:
            TEXT_BOUNDS[name](meter, *own, **kwargs)
        return apply(*args, **kwargs)

    return bounded


def _finalize(meter: Meter) -> Callable[[Context, Any], Any]:
    """Return what looks at everything that is printed."""

    @pass_context
    def finalize(context: Context, value: Any) -> Any:
        return value if isinstance(value, str) else meter.as_text(value)

    return finalize


def _json_filter(meter: Meter) -> Callable[..., str]:
    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Unlike Jinja's own filter this escapes nothing for HTML.
        meter.step()
        weight = meter.weigh(value)
        num_columns = len(indent) if isinstance(indent, str) else int(indent or 0)
        between = sum(map(len, separators or ()))
        meter.require_room(weight.num_characters + weight.num_elements * (weight.depth * num_columns + between))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    return to_json


class _Namespace(Namespace):
    """One that does not print what it holds: that may be itself, and many times the same."""

    def __repr__(self) -> str:
        return "<namespace>"
