"""Mistral since tokenizer version 11: each call has its own special token.

[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}
"""

from services.gateway.tools.format import CallSyntax
from services.gateway.tools.mistral import ARGUMENTS_TAG, TAG
from services.gateway.tools.named import NamedCalls

MISTRAL_NAMED = NamedCalls(
    name="mistral_v11",
    syntax=CallSyntax(
        prefix=f"{TAG}NAME{ARGUMENTS_TAG}", suffix="", markers=(TAG, ARGUMENTS_TAG), trigger=TAG, id_length=9
    ),
    signs=(TAG, ARGUMENTS_TAG),
)
