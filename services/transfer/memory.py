"""The KV memory that a transport reads from and writes into: one run of equal blocks.

address                                             address + num_blocks * block_bytes
| block 0 | block 1 | block 2 | ...                 | block num_blocks - 1 |
"""

import ctypes
import mmap
from dataclasses import dataclass

from services.errors import ConfigurationError


@dataclass(frozen=True)
class KVMemory:
    """Where the blocks of one process lie; whoever made it keeps it alive longer than the transport.

    ``view`` covers all blocks as writable bytes and is empty for memory that the CPU cannot address.
    ``device`` is ``cpu`` or ``cuda:<index>``.
    """

    address: int
    num_blocks: int
    block_bytes: int
    view: memoryview
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.num_blocks < 1 or self.block_bytes < 1:
            raise ConfigurationError(f"KV memory of {self.num_blocks} blocks of {self.block_bytes} bytes is empty.")
        if self.device == "cpu" and (self.view.nbytes != self.num_bytes or self.view.readonly or self.view.ndim != 1):
            raise ConfigurationError(f"The view of KV memory must be {self.num_bytes} writable bytes in one dimension.")

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.num_blocks * self.block_bytes

    def block(self, index: int) -> memoryview:
        """Return the bytes of one block, ``[block_bytes]``; CPU memory only."""
        return self.view[index * self.block_bytes : (index + 1) * self.block_bytes]


def allocate(num_blocks: int, block_bytes: int) -> KVMemory:
    """Return zeroed, page-aligned anonymous memory; it lives as long as its view."""
    pages = mmap.mmap(-1, num_blocks * block_bytes)
    return KVMemory(
        address=ctypes.addressof(ctypes.c_char.from_buffer(pages)),
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        view=memoryview(pages),
    )
