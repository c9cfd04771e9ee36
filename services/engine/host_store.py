"""Host memory for parked blocks: slots of one block each, pinned for a GPU."""

import torch

from services.engine.kv_cache import KVCache


class HostStore:
    """Copies whole blocks between a KV cache and ``num_slots`` slots; the memory is committed when first used."""

    def __init__(self, cache: KVCache, num_slots: int) -> None:
        self.num_slots = num_slots
        self._cache = cache
        shape = (num_slots, cache.layout.block_bytes)
        self._slots = torch.empty(shape, dtype=torch.uint8, pin_memory=cache.device.type == "cuda")

    def save(self, block: int, slot: int) -> None:
        """Copy a block of the pool into a slot."""
        self._slots[slot].copy_(self._cache.block(block))

    def load(self, slot: int, block: int) -> None:
        """Copy a slot into a block of the pool."""
        self._cache.block(block).copy_(self._slots[slot])
