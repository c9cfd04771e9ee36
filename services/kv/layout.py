"""How the KV cache of one model lies in memory, as data that two processes can compare.

One block of tokens is one contiguous run of bytes over all layers (block-major), so that it
moves as one descriptor:

    block = | plane 0 | plane 1 | plane 2 | ...          plane = (layer, name, heads, width)
    plane = [heads, block_size, width] elements of dtype

A usual layer has two planes, ``key`` and ``value``; a layer with latent attention (MLA) has one
plane ``latent`` with one head.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

LAYOUT_VERSION = 1
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Plane:
    """One tensor ``[heads, block_size, width]`` inside every block."""

    layer: int
    name: str
    heads: int
    width: int
    dtype: str

    def num_bytes(self, block_size: int) -> int:
        """Return the bytes that this plane takes in one block."""
        return self.heads * block_size * self.width * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class ParallelShape:
    """How many ranks share one worker's model."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1


@dataclass(frozen=True)
class KVLayout:
    """Everything that must agree before the first byte of KV moves.

    ``model_identity`` covers weights, tokenizer and adapters; ``numerics_class`` names dtype, weight
    form, execution mode, kernel set, instruction set and library version, within which results are
    bitwise equal.
    """

    model_identity: str
    numerics_class: str
    block_size: int
    planes: tuple[Plane, ...]
    parallel: ParallelShape = ParallelShape()
    version: int = LAYOUT_VERSION

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block over all planes."""
        return sum(plane.num_bytes(self.block_size) for plane in self.planes)

    @cached_property
    def plane_offsets(self) -> tuple[int, ...]:
        """Byte offset of each plane inside a block, in the order of ``planes``."""
        offsets, offset = [], 0
        for plane in self.planes:
            offsets.append(offset)
            offset += plane.num_bytes(self.block_size)
        return tuple(offsets)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the whole layout; peers compare it before the first byte."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def num_blocks(self, num_tokens: int) -> int:
        """Return how many blocks hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)
