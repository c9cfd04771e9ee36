"""Makes the element-wise operators of a model on CPU give each row the same bits, whatever other rows there are.

An element-wise kernel of torch computes the last elements of its range with scalar code, which for sigmoid, SiLU and
GELU differs in the last bit from the vectorised code. Its range is the flattened tensor, or a thread's share of it. So
rows come in multiples that fill vectors (``row_multiple``), and activations are cut so that each thread's share does,
too (``TiledActivation``). Matrix products are the matter of ``products``.
"""

from itertools import pairwise
from math import gcd

import torch
from transformers.activations import ACT2CLS

VECTOR_ELEMENTS = 64
"""Elements that one iteration of any vectorised kernel takes at most (two vectors of bfloat16)."""
GRAIN_ELEMENTS = 32768
"""``at::internal::GRAIN_SIZE``: fewer elements are never split between threads."""


def rows_for_width(width: int) -> int:
    """Return the smallest number of rows of ``width`` elements that fills whole vectors."""
    return VECTOR_ELEMENTS // gcd(VECTOR_ELEMENTS, width)


def row_multiple(model: torch.nn.Module) -> int:
    """Return what the number of rows of a packed batch must be a multiple of."""
    return max((rows_for_width(width) for width in _widths(model)), default=1)


def tile_activations(model: torch.nn.Module) -> None:
    """Wrap the activations of ``model``; to be called once, after loading."""
    activations = tuple({entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()})
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, activations):
                setattr(parent, name, TiledActivation(child))


def _widths(model: torch.nn.Module) -> set[int]:
    """Return how many columns the matrix products of ``model`` have."""
    return {
        weight.shape[0]
        for module in model.modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        and weight.ndim == 2
        and not isinstance(module, torch.nn.Embedding)
    }


class TiledActivation(torch.nn.Module):
    """Runs an activation so that every thread's share is a multiple of ``VECTOR_ELEMENTS``."""

    def __init__(self, activation: torch.nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the activation of ``[..., width]``."""
        values = values.contiguous()
        threads = torch.get_num_threads()
        if threads == 1 or values.numel() < GRAIN_ELEMENTS:
            result: torch.Tensor = self.activation(values)
            return result
        rows = values.view(-1, values.shape[-1])
        parts = [self.activation(rows[start:end]) for start, end in _tiles(rows.shape[0], rows.shape[1], threads)]
        return torch.cat(parts).view_as(values)


def _tiles(num_rows: int, width: int, threads: int) -> list[tuple[int, int]]:
    """Return row ranges: one that threads share evenly, in whole vectors, then some too small to be shared."""
    unit = threads * VECTOR_ELEMENTS // gcd(threads * VECTOR_ELEMENTS, width)
    shared = num_rows // unit * unit
    if shared * width < GRAIN_ELEMENTS * threads:
        shared = 0
    small = rows_for_width(width)
    step = max(small, (GRAIN_ELEMENTS - 1) // width // small * small)
    cuts = [0, *range(shared, num_rows, step), num_rows] if shared else [*range(0, num_rows, step), num_rows]
    return [(start, end) for start, end in pairwise(cuts) if start < end]
