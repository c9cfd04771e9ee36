"""GLM since 4.5: a call is the function's name and pairs of tags, on lines of their own up to 4.6.

<tool_call>f
<arg_key>a</arg_key>
<arg_value>1</arg_value>
</tool_call>
"""

from services.gateway.tools.format import CallSyntax, ParameterSyntax
from services.gateway.tools.hermes import CLOSE, OPEN
from services.gateway.tools.parameter_calls import ParameterCalls

KEY = "<arg_key>"
_KEY_END, _VALUE, _VALUE_END = "</arg_key>", "<arg_value>", "</arg_value>"
_MARKERS = (OPEN, CLOSE, KEY, _KEY_END, _VALUE, _VALUE_END)
_INLINE = f"{{function-name}}{KEY}"
"""How templates since 4.7 describe a call."""

GLM_45 = ParameterCalls(
    name="glm45",
    syntax=CallSyntax(
        prefix=f"{OPEN}NAME\n",
        suffix=CLOSE,
        parameters=ParameterSyntax(f"{KEY}NAME{_KEY_END}\n{_VALUE}", _VALUE_END, separator="\n"),
        separator="\n",
        markers=_MARKERS,
        trigger=OPEN,
    ),
    signs=(OPEN, KEY),
    others=(_INLINE,),
)
GLM_47 = ParameterCalls(
    name="glm47",
    syntax=CallSyntax(
        prefix=f"{OPEN}NAME",
        suffix=CLOSE,
        parameters=ParameterSyntax(f"{KEY}NAME{_KEY_END}{_VALUE}", _VALUE_END),
        markers=_MARKERS,
        trigger=OPEN,
    ),
    signs=(OPEN, _INLINE),
)
