"""The pool of KV blocks: who claims each of them, and why.

    free ──take──> claimed ──last release──> free, or cached if it was published
                      ^                                  │
                      └────────── claim, take ───────────┘

A claim is an owner with a reason; a block may carry many, and one owner's claim covers many blocks.
In the ledger each block counts once, under the strongest reason of its claims. Quarantine is a claim
like the others: what a peer may still write is neither read nor given out until the claim is released.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from services.engine.output import Ledger
from services.engine.parking import Parking
from services.engine.prefix_cache import CacheChanges, PrefixCache
from services.engine.request import AttemptKey
from services.errors import InternalError, PoolExhausted
from services.kv.hashes import BlockHash


class Reason(IntEnum):
    """Why a block is claimed, weakest first."""

    USED = 0
    """A request reads or writes it."""
    LEASED = 1
    """A transfer reads it."""
    RESERVED = 2
    """A peer is to write it."""
    QUARANTINED = 3
    """A peer that was given up may still write it."""

    __hash__ = int.__hash__  # claims are looked up often; an enum hashes its name


STRONGEST_FIRST = tuple(sorted(Reason, reverse=True))


class Claim(NamedTuple):
    """What keeps blocks from being given to others."""

    reason: Reason
    owner: str | int | AttemptKey
    """A request id, a hold, or an attempt."""


class BlockPool:
    """Gives out blocks ``0 .. num_blocks - 1`` and takes them back when their last claim ends."""

    def __init__(self, num_blocks: int, parking: Parking | None = None) -> None:
        self._num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cache = PrefixCache(parking)
        self._blocks_of: dict[Claim, list[int]] = {}
        self._num_claims = [[0] * len(Reason) for _ in range(num_blocks)]  # [block][reason]
        self._strongest: list[Reason | None] = [None] * num_blocks  # [block]
        self._num_strongest = [0] * len(Reason)  # [reason]: blocks of which it is the strongest

    # -- claims ----------------------------------------------------------------------------------

    def take(self, num_blocks: int, claim: Claim) -> list[int]:
        """Return blocks whose content is nobody's, free ones first, then the least missed cached ones.

        Raises:
            PoolExhausted: fewer than ``num_blocks`` are free or cached; nothing was taken.
        """
        if num_blocks > self.num_available:
            raise PoolExhausted(f"{num_blocks} KV blocks are needed, {self.num_available} are available.")
        free, reason = self._free, claim.reason
        blocks = [free.pop() if free else self._cache.evict() for _ in range(num_blocks)]
        if blocks:
            self._blocks_of.setdefault(claim, []).extend(blocks)
            self._num_strongest[reason] += num_blocks
        for block in blocks:  # it has no claim and no name, so that nothing else changes
            self._num_claims[block][reason] = 1
            self._strongest[block] = reason
        return blocks

    def claim(self, blocks: Sequence[int], claim: Claim) -> None:
        """Add a claim to blocks that are cached or claimed already."""
        if not blocks:
            return
        self._cache.touch(blocks)
        self._blocks_of.setdefault(claim, []).extend(blocks)
        reason = claim.reason
        for block in blocks:
            self._num_claims[block][reason] += 1
            before = self._strongest[block]
            if before is None or before < reason:
                self._move(block, before, reason)

    def release(self, claim: Claim) -> None:
        """End a claim on all its blocks; an unknown one has none."""
        blocks = self._blocks_of.pop(claim, ())
        if claim.reason is Reason.USED:  # covers a chain from its beginning, which a lease need not
            self._cache.touch(blocks)
        for block in blocks:
            self._drop(block, claim.reason)

    def is_held(self, claim: Claim) -> bool:
        """Whether ``claim`` covers any block."""
        return claim in self._blocks_of

    # -- room ------------------------------------------------------------------------------------

    @property
    def num_available(self) -> int:
        """Blocks that ``take`` could give now: free ones and cached ones."""
        return len(self._free) + self._cache.num_evictable

    def fits(self, num_blocks: int, *, sharing: Iterable[int] = (), leaving: int = 0) -> bool:
        """Whether ``num_blocks`` could be taken after claiming ``sharing``, with ``leaving`` still available."""
        num_pinned = sum(self._strongest[block] is None for block in sharing)
        return num_blocks + num_pinned + leaving <= self.num_available

    @property
    def num_parked(self) -> int:
        """Blocks in host memory beside the pool."""
        return self._cache.num_parked

    def num_claimed(self, reason: Reason) -> int:
        """Return how many blocks have ``reason`` as their strongest claim."""
        return self._num_strongest[reason]

    # -- prefix cache ----------------------------------------------------------------------------

    def find(self, names: Iterable[BlockHash]) -> list[int]:
        """Return the blocks of the longest known run at the start of ``names``; claim them to keep them."""
        return self._cache.find(names)

    def restore(self, names: Sequence[BlockHash], *, leaving: int) -> None:
        """Make parked blocks findable again that continue what is found of ``names``, as far as there is room.

        ``leaving`` blocks stay available. What had to go for them was missed longest, and is parked in turn.
        """
        found = self._cache.find(names)
        parked = self._cache.find_parked(names[len(found) :])
        if not parked:
            return
        restoring = Claim(Reason.LEASED, "restoring")
        self.claim(found, restoring)
        num_blocks = min(len(parked), max(self.num_available - leaving, 0))
        taken = self._cache.take_parked(parked[:num_blocks])
        for entry, block in zip(taken, self.take(num_blocks, restoring), strict=True):
            self._cache.restore(entry, block)
        self.release(restoring)

    def publish(self, block: int, name: BlockHash, index: int) -> None:
        """Make a claimed block findable that is whole, computed, and the ``index``-th of its sequence.

        Does nothing if another block has that name already; this one is then free when released.
        """
        self._cache.publish(block, name, index)

    def ended(self, name: BlockHash) -> None:
        """Note that a sequence ended, whose last whole computed block is ``name``."""
        self._cache.ended(name)

    def take_cache_changes(self) -> CacheChanges:
        """Return what others are to be told of the prefix cache since the last call."""
        return self._cache.take_changes()

    # -- ledger ----------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """Return each block once, as counted while claims came and went."""
        return self._ledger(self._num_strongest, cached=self._cache.num_evictable, free=len(self._free))

    def audit(self) -> Ledger:
        """Return the same, counted anew from the claims; looks at every block, so for tests and idle time.

        Raises:
            InternalError: a block is listed as free although it is claimed or cached, or listed twice.
        """
        strongest: dict[int, Reason] = {}
        for claim, blocks in self._blocks_of.items():
            for block in blocks:
                strongest[block] = max(claim.reason, strongest.get(block, claim.reason))
        cached = {block for block in range(self._num_blocks) if block in self._cache and block not in strongest}
        free = set(range(self._num_blocks)) - strongest.keys() - cached
        if len(self._free) != len(free) or set(self._free) != free:
            raise InternalError(f"The free list of the KV pool is wrong in {set(self._free) ^ free}.")
        counts = [sum(found is reason for found in strongest.values()) for reason in Reason]
        return self._ledger(counts, cached=len(cached), free=len(free))

    def _ledger(self, counts: Sequence[int], *, cached: int, free: int) -> Ledger:
        return Ledger(
            quarantined=counts[Reason.QUARANTINED],
            reserved=counts[Reason.RESERVED],
            leased=counts[Reason.LEASED],
            used=counts[Reason.USED],
            cached=cached,
            free=free,
            total=self._num_blocks,
        )

    # -- bookkeeping -----------------------------------------------------------------------------

    def _drop(self, block: int, reason: Reason) -> None:
        """Count one claim less on ``block``."""
        claims = self._num_claims[block]
        claims[reason] -= 1
        if not claims[reason] and self._strongest[block] is reason:
            self._move(block, reason, _strongest(claims))

    def _move(self, block: int, before: Reason | None, after: Reason | None) -> None:
        """Move ``block`` in the ledger, from one strongest claim to another."""
        self._strongest[block] = after
        if before is not None:
            self._num_strongest[before] -= 1
        elif block in self._cache:
            self._cache.claimed(block)
        if after is not None:
            self._num_strongest[after] += 1
        elif block in self._cache:
            self._cache.unclaimed(block)
        else:
            self._free.append(block)


def _strongest(claims: Sequence[int]) -> Reason | None:
    for reason in STRONGEST_FIRST:
        if claims[reason]:
            return reason
    return None
