"""Qwen3-Coder and Qwen 3.5: each call is a function in tags, with each argument on lines of its own.

<tool_call>
<function=f>
<parameter=a>
1
</parameter>
</function>
</tool_call>
"""

from services.gateway.tools.format import CallSyntax, ParameterSyntax
from services.gateway.tools.hermes import CLOSE, OPEN
from services.gateway.tools.parameter_calls import ParameterCalls

FUNCTION = "<function="

QWEN_CODER = ParameterCalls(
    name="qwen3_coder",
    syntax=CallSyntax(
        prefix=f"{OPEN}\n{FUNCTION}NAME>\n",
        suffix=f"</function>\n{CLOSE}",
        parameters=ParameterSyntax(prefix="<parameter=NAME>\n", suffix="\n</parameter>", separator="\n"),
        separator="\n",
        markers=(OPEN, CLOSE),
        trigger=OPEN,
    ),
    signs=(OPEN, FUNCTION, "<parameter="),
)
