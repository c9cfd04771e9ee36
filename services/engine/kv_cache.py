"""The memory that holds the KV cache: block-major, one contiguous run of bytes per block.

memory = | block 0 | block 1 | ...          starts on a page
block  = | plane 0 | plane 1 | ...          plane = [heads, block_size, width], see services.kv.layout
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from services.errors import ConfigurationError, InternalError
from services.kv.layout import DTYPE_BYTES, KVLayout, Plane

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Buffer:
    """An address range, for registration by a transport. ``address`` is a device address on a GPU."""

    address: int
    num_bytes: int


class KVCache:
    """``num_blocks`` blocks of ``layout.block_bytes``; on CPU the memory is zero and is committed when touched."""

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        if num_blocks < 1 or not layout.planes:
            raise ConfigurationError(f"a KV cache needs blocks and planes, got {num_blocks} and {len(layout.planes)}")
        self.layout = layout
        self.num_blocks = num_blocks
        self._pages: mmap.mmap | None = None
        self._memory = self._allocate(num_blocks * layout.block_bytes, device)
        self.planes: tuple[torch.Tensor, ...] = tuple(
            self._view((plane,), offset)[:, 0]
            for plane, offset in zip(layout.planes, layout.plane_offsets, strict=True)
        )
        """Views ``[num_blocks, heads, block_size, width]`` in the order of ``layout.planes``."""
        self._runs = [self._view(planes, offset) for planes, offset in _uniform_runs(layout)]

    @property
    def device(self) -> torch.device:
        """Where the memory is."""
        return self._memory.device

    @property
    def buffer(self) -> Buffer:
        """The whole memory; block ``i`` starts at ``address + i * layout.block_bytes``."""
        return Buffer(self._memory.data_ptr(), self._memory.numel())

    @property
    def view(self) -> memoryview:
        """The whole memory as writable bytes; empty on a GPU."""
        return memoryview(b"") if self._pages is None else memoryview(self._pages)

    def block_view(self, block_id: int) -> memoryview:
        """Return the bytes of a block: writable and shared on CPU, a read-only copy from a GPU.

        Raises:
            InternalError: no such block.
        """
        block = self.block(block_id)
        if self._pages is None:
            return memoryview(block.cpu().numpy().tobytes())
        start = block_id * self.layout.block_bytes
        return memoryview(self._pages)[start : start + self.layout.block_bytes]

    def block(self, block_id: int) -> torch.Tensor:
        """Return the bytes of a block as a ``uint8`` tensor that shares the pool's memory, wherever that is.

        Raises:
            InternalError: no such block.
        """
        self._check(block_id)
        start = block_id * self.layout.block_bytes
        return self._memory[start : start + self.layout.block_bytes]

    def zero_tail(self, block_id: int, num_tokens: int) -> None:
        """Zero the slots of a block from token ``num_tokens`` on, in every plane.

        Raises:
            InternalError: no such block.
        """
        self._check(block_id)
        for run in self._runs:
            run[block_id, :, :, num_tokens:].zero_()

    def _check(self, block_id: int) -> None:
        if not 0 <= block_id < self.num_blocks:
            raise InternalError(f"block {block_id} is outside of the pool of {self.num_blocks}")

    def _allocate(self, num_bytes: int, device: torch.device) -> torch.Tensor:
        if device.type != "cpu":
            return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._pages = mmap.mmap(-1, num_bytes)
        return torch.frombuffer(self._pages, dtype=torch.uint8)

    def _view(self, planes: Sequence[Plane], offset: int) -> torch.Tensor:
        """Return ``[num_blocks, len(planes), heads, block_size, width]`` over neighbouring planes of one shape."""
        plane, block_size = planes[0], self.layout.block_size
        size = DTYPE_BYTES[plane.dtype]
        if self.layout.block_bytes % size or offset % size:
            raise ConfigurationError(f"plane {plane.layer}.{plane.name} is not aligned to its {size}-byte elements")
        typed = self._memory.view(TORCH_DTYPES[plane.dtype])
        token, head = plane.width, block_size * plane.width
        strides = (self.layout.block_bytes // size, plane.heads * head, head, token, 1)
        shape = (self.num_blocks, len(planes), plane.heads, block_size, plane.width)
        return typed.as_strided(shape, strides, offset // size)


def _uniform_runs(layout: KVLayout) -> list[tuple[list[Plane], int]]:
    """Return neighbouring planes of one shape together, each run with its byte offset in a block."""
    runs = []
    located = zip(layout.planes, layout.plane_offsets, strict=True)
    for _, members in groupby(located, key=lambda item: (item[0].heads, item[0].width, item[0].dtype)):
        run = list(members)
        runs.append(([plane for plane, _ in run], run[0][1]))
    return runs
