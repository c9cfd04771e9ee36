"""``tools``, ``tool_choice`` and ``parallel_tool_calls``: what a request says of tools."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.errors import InvalidRequest
from services.gateway.structured.bounds import SchemaBudget
from services.gateway.tools.format import MAX_PARALLEL_CALLS, Tool, ToolUse

_NO_PARAMETERS = {"type": "object", "properties": {}}
_MODES = ("none", "auto", "required")


Definition = Mapping[str, Any]
"""A tool as chat completions describe it: ``{"type": "function", "function": {"name": ...}}``."""


def tool_use(tools: Sequence[Definition] | None, choice: Any, parallel: bool | None) -> ToolUse | None:
    """Return what may and must be called, or None if nothing can be.

    Raises:
        InvalidRequest: a tool is out of bounds, or the choice names none of them.
    """
    if not tools:
        if choice in (None, "none", "auto"):
            return None
        raise _invalid_choice("'tool_choice' is only allowed when 'tools' are specified")
    known = _known_tools(tools)
    mode, names = _mode_and_names(choice, set(known))
    if mode == "none":
        return None
    is_named = isinstance(choice, dict) and choice.get("type") == "function"
    return ToolUse(
        definitions=[_told(tool) for tool in tools],
        callable=[tool for name, tool in known.items() if name in names],
        is_required=mode == "required",
        max_calls=1 if is_named or parallel is False else MAX_PARALLEL_CALLS,
    )


def _told(tool: Definition) -> Definition:
    """Return a tool as models are told of it."""
    function = {key: value for key, value in tool["function"].items() if key != "strict" and value is not None}
    return {**tool, "function": function}


def _known_tools(tools: Sequence[Definition]) -> dict[str, Tool]:
    budget, known = SchemaBudget(), dict[str, Tool]()
    for index, tool in enumerate(tools):
        function, param = tool["function"], f"tools[{index}].function"
        name = function["name"]
        if name in known:
            raise InvalidRequest(f"There is more than one tool named '{name}'.", param=f"{param}.name")
        parameters = function.get("parameters") or _NO_PARAMETERS
        if parameters.get("type", "object") != "object":
            raise InvalidRequest(
                f"Invalid schema for function '{name}': its parameters must be of type 'object', not "
                f"'{parameters['type']}'.",
                param=f"{param}.parameters",
            )
        budget.add(parameters, f"{param}.parameters")
        known[name] = Tool(name, {"type": "object", **parameters}, strict=bool(function.get("strict")))
    return known


def _mode_and_names(choice: Any, known: set[str]) -> tuple[str, set[str]]:
    """Return none, auto or required, and which tools may be called."""
    match choice:
        case None:
            return "auto", known
        case str() if choice in _MODES:
            return choice, known
        case {"type": "function", "function": {"name": str(name)}}:
            return "required", _checked([name], known)
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(allowed)}}:
            return mode, _checked([_name_of(tool) for tool in allowed], known)
    raise _invalid_choice("expected 'none', 'auto', 'required', or an object that names a function of 'tools'")


def _name_of(tool: Any) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    raise _invalid_choice("an allowed tool must be an object that names a function of 'tools'")


def _checked(names: Sequence[str], known: set[str]) -> set[str]:
    for name in names:
        if name not in known:
            raise _invalid_choice(f"there is no function '{name}' in 'tools'")
    if not names:
        raise _invalid_choice("no tool is allowed; use 'none'")
    return set(names)


def _invalid_choice(problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for 'tool_choice': {problem}.", param="tool_choice")
