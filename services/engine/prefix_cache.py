"""Finds computed blocks by the tokens they hold, and knows which of them to park or give up first.

A block is named by the chained hash of its tokens (``services.kv.hashes``), so that equal names mean
equal KV. Of the blocks that nobody claims, the one whose chain was used longest ago goes first, and of
one chain the end goes before its beginning: a block is of no use without those before it.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.engine.parking import Parked, Parking
from services.kv.hashes import BlockHash
from services.kv.landmarks import is_landmark

CacheChanges = Mapping[BlockHash, bool]
"""Names of blocks that others are told of (``services.kv.landmarks``), each with whether it is cached now."""


@dataclass(slots=True)
class _Entry:
    name: BlockHash
    index: int
    """Position of the block in its chain."""
    last_use: int
    is_claimed: bool = True
    is_told: bool = False
    """Whether others are told of it."""
    is_queued: bool = False
    """Whether the heap has an entry for it, perhaps with an older ``last_use``."""


class PrefixCache:
    """Names of blocks, and the order in which unclaimed ones are evicted."""

    def __init__(self, parking: Parking | None = None) -> None:
        self.num_evictable = 0
        self._parking = Parking() if parking is None else parking
        self._block_of: dict[BlockHash, int] = {}
        self._entries: dict[int, _Entry] = {}
        self._oldest: list[tuple[int, int, int]] = []  # (last use, minus index, block), at most one per block
        self._num_uses = 0
        self._changes: dict[BlockHash, bool] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    def find(self, names: Iterable[BlockHash]) -> list[int]:
        """Return the blocks of the longest known run at the start of ``names``."""
        blocks = []
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, block: int, name: BlockHash, index: int) -> None:
        """Make a claimed, computed block findable; of two with the same name the first one stays."""
        if name not in self._block_of:
            self._block_of[name] = block
            parked = self._parking.discard(name)
            is_told = parked is not None and parked.is_told
            self._entries[block] = entry = _Entry(name, index, self._num_uses, is_told=is_told)
            if is_landmark(index):
                self._tell(entry)

    @property
    def num_parked(self) -> int:
        """Blocks in host memory."""
        return len(self._parking)

    def find_parked(self, names: Sequence[BlockHash]) -> list[BlockHash]:
        """Return the longest run at the start of ``names`` that is parked."""
        return self._parking.run(names)

    def take_parked(self, names: Iterable[BlockHash]) -> list[Parked]:
        """Return parked blocks that are to be restored; what is parked from now on does not displace them."""
        return [self._parking.take(name) for name in names]

    def restore(self, parked: Parked, block: int) -> None:
        """Bring a block that was taken back into the pool, into a claimed block."""
        self._parking.load(parked, block)
        self.publish(block, parked.name, parked.index)
        self._entries[block].is_told = parked.is_told

    def touch(self, blocks: Iterable[int]) -> None:
        """Note a use of ``blocks``, a chain from its beginning; so no block is ever older than a later one."""
        self._num_uses += 1
        for block in blocks:
            entry = self._entries.get(block)
            if entry is not None:
                entry.last_use = self._num_uses

    def claimed(self, block: int) -> None:
        """Note that an unclaimed block got a claim: it stays."""
        self._entries[block].is_claimed = True
        self.num_evictable -= 1

    def unclaimed(self, block: int) -> None:
        """Note that the last claim of a block ended: it may be evicted."""
        entry = self._entries[block]
        entry.is_claimed = False
        self.num_evictable += 1
        if not entry.is_queued:
            self._queue(block, entry)

    def evict(self) -> int:
        """Park the block that is missed least, or forget it, and return it. There must be an evictable one."""
        while True:
            last_use, _, block = heapq.heappop(self._oldest)
            entry = self._entries[block]
            entry.is_queued = False
            if entry.is_claimed:
                continue  # it queues again when its last claim ends
            if entry.last_use == last_use:
                return self._forget(block)
            self._queue(block, entry)

    def ended(self, name: BlockHash) -> None:
        """Note that a sequence ended, whose last whole computed block is ``name``."""
        block = self._block_of.get(name)
        if block is not None:
            self._tell(self._entries[block])

    def take_changes(self) -> CacheChanges:
        """Return what others are to be told since the last call."""
        changes, self._changes = self._changes, {}
        return changes

    def _queue(self, block: int, entry: _Entry) -> None:
        entry.is_queued = True
        heapq.heappush(self._oldest, (entry.last_use, -entry.index, block))

    def _forget(self, block: int) -> int:
        self.num_evictable -= 1
        entry = self._entries.pop(block)
        del self._block_of[entry.name]
        lost = self._parking.park(block, entry.name, entry.index, is_told=entry.is_told)
        if lost is not None and lost.is_told:
            self._changes[lost.name] = False
        return block

    def _tell(self, entry: _Entry) -> None:
        if not entry.is_told:
            entry.is_told = True
            self._changes[entry.name] = True
