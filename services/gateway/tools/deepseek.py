"""DeepSeek: calls between special tokens, plain since V3.1, in a code fence in V3 and R1.

CALLS BEGIN  CALL BEGIN f SEPARATOR {"a": 1} CALL END  CALLS END
"""

from services.gateway.tools.format import CallSyntax
from services.gateway.tools.named import NamedCalls

_BAR, _SPACE = "\uff5c", "\u2581"


def _token(words: str) -> str:
    """Return a special token, which these models write with full-width bars and lower blocks."""
    return f"<{_BAR}{words.replace(' ', _SPACE)}{_BAR}>"


_OPENING, _CLOSING = _token("tool calls begin"), _token("tool calls end")
_BEGIN, _SEPARATOR, _END = _token("tool call begin"), _token("tool sep"), _token("tool call end")
_MARKERS = (_OPENING, _CLOSING, _BEGIN, _SEPARATOR, _END)
_FENCE = "```json"

DEEPSEEK = NamedCalls(
    name="deepseek",
    syntax=CallSyntax(
        opening=_OPENING,
        prefix=f"{_BEGIN}NAME{_SEPARATOR}",
        suffix=_END,
        closing=_CLOSING,
        markers=_MARKERS,
        trigger=_OPENING,
    ),
    signs=(_OPENING,),
    others=(_FENCE,),
)
DEEPSEEK_V3 = NamedCalls(
    name="deepseek_v3",
    syntax=CallSyntax(
        opening=_OPENING,
        prefix=f"{_BEGIN}function{_SEPARATOR}NAME\n{_FENCE}\n",
        suffix=f"\n```{_END}",
        separator="\n",
        closing=_CLOSING,
        markers=_MARKERS,
        trigger=_OPENING,
    ),
    signs=(_OPENING, _FENCE),
)
