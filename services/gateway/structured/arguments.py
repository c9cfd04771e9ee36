"""Grammars of the arguments of tools, each held to its schema.

JSON        @tool_0
parameters  required parameter  (optional parameter)?  (any other parameter){0,n}     in the order of the schema

A parameter that may be a text is held to what a text without quotes can be held to.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from services.errors import InvalidRequest
from services.gateway.structured.definition import HeldSchema
from services.gateway.structured.references import Definitions
from services.gateway.structured.terminals import ANY, Terminals, joined, quoted
from services.gateway.tools.bare_values import (
    TEXT,
    branches_of,
    types_of,
    types_of_branch,
    values_of_branch,
    whole_schema,
)
from services.gateway.tools.format import NAME, ParameterSyntax, Schema, Tool
from services.gateway.tools.parameter_calls import MAX_NAME_LENGTH

MAX_OTHER_PARAMETERS = 16
"""Parameters of one call that its schema does not name: a model that may go on does."""
MAX_VALUE_BYTES = 2 * 2**20
"""Of the schemas of all values of one grammar: each has what it refers to with it."""
_OPEN_OBJECTS = {"additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf", "allOf", "not", "if"}
"""Keywords by which an object says itself what else it may hold."""
_LITERALS = {"null": ["null"], "boolean": ["true", "false"]}
_UNENFORCED_OBJECTS = ("patternProperties", "minProperties", "maxProperties", "anyOf", "oneOf", "not", "if")
_UNENFORCED_TEXTS = ("pattern", "format", "not", "if")
_ANNOTATIONS = {"title", "description", "default", "examples"}


class ArgumentWriter:
    """Writes the arguments of the tools of one grammar; what several values have in common is written once."""

    def __init__(self, syntax: ParameterSyntax | None, terminals: Terminals) -> None:
        """``syntax`` says how arguments are written; None for a JSON object."""
        self.syntax = syntax
        self.terminals = terminals
        self.rules: list[str] = []
        """What expressions refer to, beside ``schemas``."""
        self.schemas: dict[str, HeldSchema] = {}
        self._texts: dict[str, str] = {}
        self._values: dict[bytes, str] = {}
        self._num_bytes = 0
        """Of the schemas of values."""

    def expression(self, tool: Tool, name: str) -> str:
        """Return the arguments of a tool; ``name`` begins the names of its rules.

        Raises:
            InvalidRequest: the tool has what the format cannot be held to.
        """
        closed = _closed(tool.parameters)
        if self.syntax is not None:
            return _Parameters(self, self.syntax, tool, closed, name).expression()
        self.schemas[name] = HeldSchema(closed, strict=tool.strict)
        return f"@{name}"

    def text(self, terminal: str, suffix: str) -> str:
        """Return a text, which ``terminal`` describes, and its end, which it does not hold."""
        if terminal not in self._texts:
            self._texts[terminal] = self._new_text(f"text_{len(self._texts)}", terminal, suffix)
        return self._texts[terminal]

    def value(self, schema: Schema, *, strict: bool) -> str:
        """Return a value that is JSON.

        Raises:
            InvalidRequest: all values together are too long.
        """
        held = HeldSchema({key: value for key, value in schema.items() if key not in _ANNOTATIONS}, strict=strict)
        written = orjson.dumps(held.guided)
        if written not in self._values:
            self._num_bytes += len(written)
        if self._num_bytes > MAX_VALUE_BYTES:
            raise InvalidRequest(
                f"The schemas of these tools have more than {MAX_VALUE_BYTES} bytes when each parameter has with it "
                "what it refers to. Let fewer parameters refer to large definitions.",
                param="tools",
            )
        name = self._values.setdefault(written, f"value_{len(self._values)}")
        self.schemas[name] = held
        return f"@{name}"

    def _new_text(self, name: str, terminal: str, suffix: str) -> str:
        marker = suffix.strip()
        if self.terminals.is_token(marker):
            self.rules.append(f"{name.upper()}: {terminal}")
            return joined(name.upper(), self.terminals.text(suffix))
        escaped = re.escape(marker).replace("/", r"\/")
        self.rules.append(f"{name.upper()}: {terminal} & ~/(.|\\n)*{escaped}(.|\\n)*/")
        self.rules.append(f"{name}[lazy]: {name.upper()} {quoted(suffix)}")
        return name


class _Parameters:
    """Writes the arguments of one tool, one after the other."""

    def __init__(self, writer: ArgumentWriter, syntax: ParameterSyntax, tool: Tool, root: Schema, name: str) -> None:
        self._writer = writer
        self._syntax = syntax
        self._tool = tool
        self._root = root
        self._definitions = Definitions(root)
        self._name = name

    def expression(self) -> str:
        """Return all of them."""
        whole = whole_schema(self._root, self._root)
        self._check(whole, _UNENFORCED_OBJECTS)
        properties, required = whole.get("properties", {}), whole.get("required", ())
        parts = [
            f"({self._parameter(name, schema)}){'' if name in required else '?'}" for name, schema in properties.items()
        ]
        others = whole.get("additionalProperties", True)
        if others is not False:
            parts.append(f"({self._other(properties, others)}){{0,{MAX_OTHER_PARAMETERS}}}")
        if not parts:
            return ""
        self._writer.rules.append(f"{self._name}: {joined(*parts)}")
        return self._name

    def _parameter(self, name: str, schema: Any) -> str:
        """Return a parameter.

        Raises:
            InvalidRequest: no call could name it.
        """
        if len(name) > MAX_NAME_LENGTH or set(name) & set("<>\n"):
            raise InvalidRequest(
                f"Invalid schema for function '{self._tool.name}': this model cannot write the name of the parameter "
                f"'{name[:MAX_NAME_LENGTH]}', which is longer than {MAX_NAME_LENGTH} characters, or holds '<', '>' or "
                "a line break. Rename it.",
                param="tools",
            )
        return self._written(quoted(name), schema)

    def _other(self, properties: Mapping[str, Any], schema: Any) -> str:
        """Return a parameter that the schema does not name."""
        terminal = f"{self._name}_OTHER".upper()
        known = "".join(f" & ~{quoted(name)}" for name in properties if name)
        self._writer.rules.append(f"{terminal}: /[^<>\\n]{{1,64}}/{known}")
        return self._written(terminal, schema)

    def _written(self, name: str, schema: Any) -> str:
        """Return a parameter; its name is a terminal of its own, as one may begin like another."""
        before, _, behind = self._syntax.prefix.partition(NAME)
        text = self._writer.terminals.text
        return joined(text(before), name, text(behind), self._value(schema), text(self._syntax.separator))

    def _value(self, schema: Any) -> str:
        """Return a value and its end."""
        suffix = self._syntax.suffix
        if "string" in types_of(schema, self._root):
            forms = [form for branch in branches_of(schema, self._root) for form in self._forms(branch)]
            return self._writer.text(ANY if ANY in forms else f"({' | '.join(forms)})", suffix)
        value = self._writer.value(self._definitions.self_contained(schema), strict=self._tool.strict)
        return joined(value, self._writer.terminals.text(suffix))

    def _forms(self, branch: Schema) -> Iterator[str]:
        """Yield terminals of which a text is one."""
        self._check(branch, _UNENFORCED_TEXTS)
        types, values = types_of_branch(branch), values_of_branch(branch)
        if values is not None:
            texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
            yield from (quoted(text) or '""' for text in texts)
        elif types <= {"string", *_LITERALS}:
            yield from (quoted(word) for each in sorted(types - TEXT) for word in _LITERALS[each])
            yield from [_any_text(branch)] if types & TEXT else []
        else:
            yield ANY

    def _check(self, whole: Schema, keywords: Sequence[str]) -> None:
        """Refuse, of a strict tool, what texts that stand bare cannot be held to.

        Raises:
            InvalidRequest: the schema has one of ``keywords``.
        """
        found = [keyword for keyword in keywords if keyword in whole]
        if found and self._tool.strict:
            raise InvalidRequest(
                f"Invalid schema for function '{self._tool.name}': unimplemented keys {found}, since this model writes "
                "arguments one by one and texts without quotes. Leave them out, or set 'strict' to false.",
                param="tools",
            )


def _any_text(whole: Schema) -> str:
    """Return the terminal of all texts of the lengths that a schema allows."""
    if not whole.keys() & {"minLength", "maxLength"}:
        return ANY
    return f"/(.|\\n){{{whole.get('minLength', 0)},{whole.get('maxLength', '')}}}/"


def _closed(parameters: Schema) -> Schema:
    """Return the schema of an object that has only the properties it names, unless it speaks of others itself.

    A small model that may add properties does.
    """
    if "properties" not in parameters or _OPEN_OBJECTS & parameters.keys():
        return parameters
    return {**parameters, "additionalProperties": False}
