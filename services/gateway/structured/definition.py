"""Grammars as workers read them: what llguidance (https://github.com/guidance-ai/llguidance) calls a grammar list."""

from collections.abc import Mapping
from typing import Any

import orjson

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value, as Python's ``json`` does and models were trained on. Small models that may write any
white space between two items do so for ever."""


def json_grammar(schema: Mapping[str, Any], *, strict: bool) -> str:
    """Return the grammar of every JSON text that ``schema`` describes."""
    return orjson.dumps({"grammars": [{"json_schema": guided(schema, strict=strict)}]}).decode()


def guided(schema: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    """Return ``schema`` with directions for its compiler, in place of any that the client wrote.

    Keywords that cannot be enforced are refused if ``strict``, else ignored.
    """
    return {**schema, "x-guidance": {**_STYLE, "lenient": not strict}}
