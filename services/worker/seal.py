"""Payload digests of blocks, computed when they become final and checked before they may be read."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from services.engine.output import FinalBlocks
from services.kv.digests import payload_digest


class Sealer:
    """Digests blocks of one KV pool; ``enabled=False`` makes answers unverified."""

    def __init__(self, block_view: Callable[[int], memoryview], *, enabled: bool) -> None:
        self._block_view = block_view
        self.enabled = enabled

    def seal(self, final: FinalBlocks) -> FinalBlocks:
        """Return ``final`` with the digest of each block (engine thread, between two steps)."""
        return replace(final, payload_digests=self.digests(final.block_ids)) if self.enabled else final

    def digests(self, block_ids: Iterable[int]) -> tuple[int, ...]:
        """Return the digest of each block's bytes as they are now."""
        return tuple(payload_digest(self._block_view(block_id)) for block_id in block_ids)
