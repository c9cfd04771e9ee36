"""Weights in the quantised form that a model's GGUF file has, kept beside the same weights in bfloat16.

FOLDER/model.safetensors          every weight, expanded
FOLDER/packed/model.safetensors   for some of them NAME.scales and NAME.quants, from which the expanded ones follow

A column's inner dimension is cut into blocks of 32 weights. In four bits (``Q4_1`` in GGUF) a weight is
``bfloat16(scale * quant + minimum)``, in eight bits (``Q8_0``) ``bfloat16(scale * quant)``; product and sum are rounded
to float32 first.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 32
_NIBBLES = (0, 4, 8, 12)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """One weight ``[columns, inner]``."""

    scales: torch.Tensor
    """float16 ``[columns, blocks, 2]``: scale and minimum; for eight bits ``[columns, blocks, 1]``."""
    quants: torch.Tensor
    """Four bits: uint8 ``[columns, blocks, 16]``, little-endian words, nibble k of word i is weight 8 k + i of a block;
    eight bits: int8 ``[columns, blocks, 32]``."""

    @property
    def bits(self) -> int:
        """Bits of a quant, 4 or 8."""
        return 4 if self.quants.dtype is torch.uint8 else 8

    @property
    def shape(self) -> torch.Size:
        """``[columns, inner]``."""
        return torch.Size((self.quants.shape[0], self.quants.shape[1] * BLOCK))

    def expanded(self) -> torch.Tensor:
        """Return the weight in bfloat16."""
        scales = self.scales.float()
        if self.bits == 8:
            return (scales * self.quants).bfloat16().view(self.shape)
        words = self.quants.view(torch.int16).int()
        quants = torch.cat([words >> shift & 15 for shift in _NIBBLES], dim=-1)
        return (scales[..., :1] * quants + scales[..., 1:]).bfloat16().view(self.shape)

    def is_same(self, weight: torch.Tensor, *, stride: int = 1) -> bool:
        """Whether this expands to ``weight``, bit for bit, in every ``stride``-th column."""
        if weight.shape != self.shape or weight.dtype is not torch.bfloat16:
            return False
        some = PackedWeight(self.scales[::stride], self.quants[::stride])
        return torch.equal(some.expanded().view(torch.int16), weight[::stride].view(torch.int16))


def four_bits(scales: torch.Tensor, quants: torch.Tensor) -> PackedWeight:
    """Pack quants from 0 to 15, uint8 ``[columns, blocks, 32]``."""
    words = sum(quants[..., 2 * shift : 2 * shift + 8].int() << shift for shift in _NIBBLES)
    assert isinstance(words, torch.Tensor)
    return PackedWeight(scales, words.to(torch.int16).view(torch.uint8))


def write_packed(weights: dict[str, PackedWeight], folder: Path) -> None:
    """Write ``weights``, by the names of the expanded ones, into the model's ``folder``."""
    tensors = {f"{name}.scales": weight.scales.contiguous() for name, weight in weights.items()}
    tensors |= {f"{name}.quants": weight.quants.contiguous() for name, weight in weights.items()}
    path = packed_file(folder)
    path.parent.mkdir()
    save_file(tensors, path)
    path.chmod(0o644)


def read_packed(folder: Path) -> dict[str, PackedWeight]:
    """Return what ``write_packed`` wrote, memory-mapped; nothing if it wrote nothing."""
    if not packed_file(folder).is_file():
        return {}
    tensors = load_file(packed_file(folder))
    names = [name.removesuffix(".quants") for name in tensors if name.endswith(".quants")]
    return {name: PackedWeight(tensors[f"{name}.scales"], tensors[f"{name}.quants"]) for name in names}


def packed_file(folder: Path) -> Path:
    """Return where the packed weights of the model in ``folder`` are, if there are any."""
    return folder / "packed" / "model.safetensors"
