"""Where transformers models meet our attention: the function that they call once per layer.

Models drop unknown keyword arguments on the way to their layers, so the current batch travels in a context
variable, set around each forward pass. No mask function is registered: models then build no mask, and what a
model says only through its mask (a window, chunks) is read from its configuration.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from services.engine.attention.backend import AttentionOptions
from services.errors import InternalError

ATTENTION_NAME = "tandem_paged"
"""Contains none of the words that transformers gives a meaning to."""


@dataclass(frozen=True)
class LayerArguments:
    """What a model passes to the attention function besides tensors of the batch."""

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class LayerRunner(Protocol):
    """Whoever answers the layers of the current forward pass."""

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        arguments: LayerArguments,
    ) -> torch.Tensor:
        """Return ``[num_rows, num_heads, value_width]`` from ``[num_rows, heads, width]`` each."""


_current: ContextVar[LayerRunner] = ContextVar("tandem_layer_runner")


def register() -> None:
    """Make the function known to transformers under ``ATTENTION_NAME``; idempotent."""
    AttentionInterface.register(ATTENTION_NAME, _attention_function)


@contextmanager
def answering(runner: LayerRunner) -> Iterator[None]:
    """Let ``runner`` answer the layers of forward passes in this block."""
    token = _current.set(runner)
    try:
        yield
    finally:
        _current.reset(token)


def current_runner() -> LayerRunner:
    """Return who answers the current forward pass."""
    return _current.get()


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' contract: heads first in, ``[1, num_rows, num_heads, value_width]`` out."""
    if attention_mask is not None:
        raise InternalError("the model built an attention mask, which paged attention cannot follow")
    arguments = LayerArguments(scaling, others.get("sliding_window"), others.get("softcap"), others.get("s_aux"))
    attended = current_runner().attend(module, _rows(query), _rows(key), _rows(value), arguments)
    return attended[None], None


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """``[1, heads, num_rows, width]`` as the view ``[num_rows, heads, width]``."""
    return tensor[0].transpose(0, 1)


def resolve_options(
    module: torch.nn.Module, arguments: LayerArguments, config: Any, key_width: int
) -> AttentionOptions:
    """Return how a layer attends, from its arguments, its module and the (text) configuration."""
    sinks = arguments.sinks
    return AttentionOptions(
        scaling=key_width**-0.5 if arguments.scaling is None else float(arguments.scaling),
        window=arguments.window or _window_beside_arguments(module, config),
        chunk=_chunk(module, config),
        softcap=arguments.softcap,
        sinks=None if sinks is None else sinks.detach().float().contiguous(),
    )


def _window_beside_arguments(module: torch.nn.Module, config: Any) -> int | None:
    """Some models apply their window by the mask alone."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and layer_types[_layer_index(module)] != "sliding_attention":
        return None
    window = getattr(module, "sliding_window", None) or getattr(config, "sliding_window", None)
    return int(window) if window else None


def _chunk(module: torch.nn.Module, config: Any) -> int | None:
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None or layer_types[_layer_index(module)] != "chunked_attention":
        return None
    return int(config.attention_chunk_size)


def _layer_index(module: torch.nn.Module) -> int:
    return int(module.layer_idx)  # type: ignore[arg-type]
