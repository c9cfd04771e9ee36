"""Tells which modules of a model are written as those that we know, whatever their class is called.

Transformers repeats the same text in many models. A text is known by its digest, taken over the syntax tree without
names, annotations, decorators and comments: another version of it is another text, and stays as it is.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

RMS_NORM = "2d9a500039bc"
GATED_MLP = "a1ac67e4f1cd"
DECODER_LAYER = "054f4e0eff96"
_ROTARY = {"apply_rotary_pos_emb": "0b5ed6d10b16", "rotate_half": "0b328a0b47ec"}
_ATTENTION: dict[str, Callable[[Any], int | None]] = {
    "2dbefcc43df7": lambda module: None,
    "4bca88aa603e": lambda module: getattr(module.config, "sliding_window", None),
    "9a9ca5ab4c9e": lambda module: module.sliding_window,
    "35cdd4e8ed5a": lambda module: module.sliding_window,
}
"""Digest to the window that the module passes on: as in Llama, Mistral, Qwen2, and Qwen3 with norms of its heads."""


def is_written_as(module: object, digest: str) -> bool:
    """Whether the ``forward`` of ``module`` is the text with this digest."""
    return _digest(type(module).forward) == digest  # type: ignore[attr-defined]


def attention_window(module: Any) -> tuple[int | None] | None:
    """Return the window that an attention module that we know passes on; None for one that we do not know."""
    forward = inspect.unwrap(type(module).forward)
    window = _ATTENTION.get(_digest(forward))
    known_rotary = all(_digest(forward.__globals__.get(name)) == digest for name, digest in _ROTARY.items())
    return (window(module),) if window is not None and known_rotary else None


@cache
def _digest(function: Any) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    except (OSError, TypeError, SyntaxError):  # no Python text to read
        return ""
    if not isinstance(tree, ast.FunctionDef):
        return ""
    tree.name, tree.decorator_list, tree.returns = "function", [], None
    for argument in [*tree.args.args, *tree.args.kwonlyargs, *filter(None, [tree.args.kwarg, tree.args.vararg])]:
        argument.annotation = None
    if ast.get_docstring(tree) is not None:
        del tree.body[0]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]
