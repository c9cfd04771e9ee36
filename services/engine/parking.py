"""Blocks that the pool had no room for any more, kept in host memory until a sequence comes back to them.

cached ──evicted──> parked ──restored──> cached
                      └──least recently parked, no room──> gone
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.kv.hashes import BlockHash


class BlockStore(Protocol):
    """Memory beside the pool, in slots of one block."""

    @property
    def num_slots(self) -> int:
        """How many blocks it holds."""

    def save(self, block: int, slot: int) -> None:
        """Copy a block of the pool into a slot; done on return."""

    def load(self, slot: int, block: int) -> None:
        """Copy a slot into a block of the pool; done on return, or before anything that reads the block later."""


@dataclass(frozen=True)
class Parked:
    """One block in host memory."""

    name: BlockHash
    index: int
    """Position of the block in its chain."""
    is_told: bool
    """Whether others were told of it."""
    slot: int


class Parking:
    """Finds parked blocks by name; the one that was parked first goes first. Without a store it keeps nothing."""

    def __init__(self, store: BlockStore | None = None) -> None:
        self._store = store
        self._free = list(range(store.num_slots)) if store is not None else []
        self._parked: OrderedDict[BlockHash, Parked] = OrderedDict()

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, block: int, name: BlockHash, index: int, *, is_told: bool) -> Parked | None:
        """Keep a block's bytes; return what is lost for that: an older block, or this one if there is no memory."""
        lost = None
        if not self._free:
            if not self._parked:
                return Parked(name, index, is_told, slot=-1)
            _, lost = self._parked.popitem(last=False)
            self._free.append(lost.slot)
        parked = Parked(name, index, is_told, self._free.pop())
        if self._store is not None:
            self._store.save(block, parked.slot)
        self._parked[name] = parked
        return lost

    def run(self, names: Sequence[BlockHash]) -> list[BlockHash]:
        """Return the longest run at the start of ``names`` that is parked."""
        run = []
        for name in names:
            if name not in self._parked:
                break
            run.append(name)
        return run

    def take(self, name: BlockHash) -> Parked:
        """Return a parked block to be loaded; its slot is kept until then."""
        return self._parked.pop(name)

    def load(self, parked: Parked, block: int) -> None:
        """Copy a block that was taken into the pool; its slot is free again."""
        if self._store is not None:
            self._store.load(parked.slot, block)
        self._free.append(parked.slot)

    def discard(self, name: BlockHash) -> Parked | None:
        """Forget a block that the pool has again; return what was known of it."""
        parked = self._parked.pop(name, None)
        if parked is not None:
            self._free.append(parked.slot)
        return parked
