"""Grammars as workers read them: what llguidance (https://github.com/guidance-ai/llguidance) calls a grammar list."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value, as Python's ``json`` does and models were trained on. Small models that may write any
white space between two items do so for ever."""


@dataclass(frozen=True)
class HeldSchema:
    """A JSON schema that some part of an answer is held to."""

    schema: Mapping[str, Any]
    strict: bool
    """Whether keywords that cannot be enforced are refused; else they are ignored."""

    @property
    def guided(self) -> dict[str, Any]:
        """The schema with directions for its compiler, in place of any that the client wrote."""
        return {**self.schema, "x-guidance": {**_STYLE, "lenient": not self.strict}}


def json_grammar(answer: HeldSchema) -> str:
    """Return the grammar of every JSON text that the schema describes."""
    return orjson.dumps({"grammars": [{"json_schema": answer.guided}]}).decode()
