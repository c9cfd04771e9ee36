"""Asks a loaded model how it attends, refuses what cannot run paged, and checks exactness at start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.engine.attention.interface import LayerArguments, answering, resolve_options
from services.engine.attention.layers import LayerPlan
from services.engine.mla import LatentProjection, is_latent
from services.engine.model import Model
from services.engine.products.product import Products
from services.engine.schedule import ScheduledSequence
from services.errors import ModelRefused
from services.kv.layout import Plane

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class Measured:
    """What one forward pass showed."""

    layers: tuple[LayerPlan, ...]
    """In the order of their indices."""
    vocab_size: int


@dataclass(frozen=True)
class RowInvariance:
    """Whether a sequence's logits are bitwise the same whatever it is computed with, and in whatever pieces."""

    differing: tuple[str, ...]
    """The ways of computing it that gave other logits."""
    max_difference: float

    @property
    def is_exact(self) -> bool:
        """Whether no way differed."""
        return not self.differing


class _Recorder:
    """Answers every layer with zeros and writes down what it was asked."""

    def __init__(self, config: Any, products: Products) -> None:
        self._config = config
        self._products = products
        self.layers: list[LayerPlan] = []

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        arguments: LayerArguments,
    ) -> torch.Tensor:
        if getattr(module, "is_causal", True) is False:
            raise ModelRefused(f"{type(module).__name__} looks at later tokens: only causal attention runs here")
        layer, dtype = int(module.layer_idx), DTYPE_NAMES[key.dtype]  # type: ignore[arg-type]
        latent = LatentProjection.of(module, self._products) if is_latent(module) else None
        if latent is None:
            planes = tuple(
                Plane(layer, name, rows.shape[1], rows.shape[2], dtype)
                for name, rows in (("key", key), ("value", value))
            )
            value_width = value.shape[2]
        else:
            planes = (Plane(layer, "latent", 1, key.shape[2] + value.shape[2], dtype),)
            value_width = latent.values.shape[1]
        options = resolve_options(module, arguments, self._config, query.shape[2])
        self.layers.append(LayerPlan(layer, planes, arguments, options, latent))
        return query.new_zeros(query.shape[0], query.shape[1], value_width)


def measure(module: torch.nn.Module, config: Any, device: torch.device, products: Products) -> Measured:
    """Run two tokens through ``module``; ``config`` is its text configuration.

    Raises:
        ModelRefused: not every layer called the attention function exactly once, or the forward pass failed.
    """
    recorder = _Recorder(config, products)
    rows = torch.tensor([[0, 1]], device=device)
    try:
        with torch.inference_mode(), answering(recorder):
            output = module(input_ids=rows, position_ids=rows.clone(), use_cache=False)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelRefused(f"{type(module).__name__} cannot run a packed batch without a mask: {error!r}") from error
    layers = sorted(recorder.layers, key=lambda plan: plan.layer)
    _check_calls([plan.layer for plan in layers], int(config.num_hidden_layers), type(module).__name__)
    return Measured(tuple(layers), int(output.logits.shape[-1]))


def _check_calls(called: list[int], expected: int, name: str) -> None:
    if not called:
        raise ModelRefused(f"{name} never called the attention function: it has no attention interface")
    if len(set(called)) != len(called):
        raise ModelRefused(f"{name} calls the attention function more than once for a layer")
    if len(called) != expected:
        raise ModelRefused(
            f"only {len(called)} of {expected} layers of {name} attend through the cache: "
            "the others keep a state that is not paged (recurrent or convolutional)"
        )


def check_row_invariance(model: Model, vocab_size: int, block_size: int, *, num_blocks: int = 15) -> RowInvariance:
    """Compute a sequence whole, in pieces, with a neighbour and token by token, and compare bitwise.

    Writes to the first ``num_blocks`` (at least 5) blocks of an otherwise unused cache.
    """
    length, blocks = (num_blocks - 3) * block_size + 5, list(range(num_blocks - 1, 1, -1))
    tokens = [(7 + 13 * index) % vocab_size for index in range(length)]
    neighbour = ScheduledSequence(tokens[: block_size + 1][::-1], 0, [0, 1], True)

    def run(cuts: Sequence[int], *others: ScheduledSequence) -> torch.Tensor:
        return _run_in_pieces(model.forward, tokens, cuts, blocks, others)[-1]

    whole = run([length])
    ways = {
        "in pieces": run([block_size, length - 5, length]),
        "with a neighbour": run([length], neighbour),
        "in pieces with a neighbour": run([block_size, length], neighbour),
        "token by token": run([*range(length - 5, length + 1)]),
    }
    differing = tuple(name for name, logits in ways.items() if not torch.equal(logits, whole))
    return RowInvariance(differing, max(float((logits - whole).abs().max()) for logits in ways.values()))


def _run_in_pieces(
    forward: Callable[[Sequence[ScheduledSequence]], torch.Tensor],
    tokens: Sequence[int],
    cuts: Sequence[int],
    blocks: Sequence[int],
    others: Sequence[ScheduledSequence],
) -> list[torch.Tensor]:
    """Return the logits after each piece; ``cuts`` are the ends of the pieces."""
    logits, start = [], 0
    for end in cuts:
        piece = ScheduledSequence(tokens[start:end], start, blocks, True)
        logits.append(forward([*others, piece])[-1])
        start = end
    return logits
