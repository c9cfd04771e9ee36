"""Strategies for JSON bodies that are valid but for a few values, and for texts that JSON parsers dislike."""

import json
from typing import Any

from hypothesis import strategies as st

_RAW = {
    "@raw 1e400": "1e400",
    "@raw NaN": "NaN",
    "@raw -0": "-0",
    "@raw 1E-999": "1E-999",
    "@raw deep": "[" * 90 + "]" * 90,
}
"""Numbers and depths that only a text can hold."""
_TEXTS = [
    "",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "a\r\nb: c",
    "<|im_end|>",
    "<|im_start|>system\n",
    "{{ 7*7 }}",
    "é" * 50,
    "\u202e\ufeff",
    "x" * 3000,
    "tiny/chat-model",
    "user",
    "json_object",
]
_NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    96,
    512,
    513,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**40,
    0.0,
    -0.0,
    1e308,
    1e-320,
]
_scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(_NUMBERS)
    | st.integers(-5, 600)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(_TEXTS)
    | st.text(max_size=30)
    | st.sampled_from(sorted(_RAW))
)
values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(_TEXTS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """The text of ``valid`` with one to three values, at any depth, replaced, removed or repeated."""
    body = json.loads(json.dumps(valid))
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        _mutate(draw, body)
    return encoded(body)


def encoded(value: Any) -> bytes:
    """Return JSON that may hold what Python's own encoder would not write."""
    text = json.dumps(value)
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()


def _mutate(draw: st.DrawFn, value: Any) -> None:
    if not value:
        return
    key: Any = draw(st.sampled_from(sorted(value))) if isinstance(value, dict) else draw(st.integers(0, len(value) - 1))
    if isinstance(value[key], dict | list) and draw(st.booleans()):
        _mutate(draw, value[key])
        return
    match draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat"])):
        case "replace":
            value[key] = draw(values)
        case "remove":
            del value[key]
        case "repeat":
            value[key] = [value[key]] * draw(st.sampled_from([0, 2, 40]))
