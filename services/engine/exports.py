"""Leases blocks that are to move to a peer: as they become final, by their names, or of a request that moves on."""

from collections.abc import Sequence
from itertools import count

from services.engine.blocks import BlockPool, Claim, Reason
from services.engine.output import FinalBlocks, HandedOver
from services.engine.request import Request
from services.engine.tables import BlockTables
from services.errors import InternalError
from services.kv.hashes import BlockHash


class Exports:
    """The leases of one engine. A hold outlives its request."""

    def __init__(self, pool: BlockPool, tables: BlockTables) -> None:
        self._pool = pool
        self._tables = tables
        self._holds = count(1)

    def lease_cached(self, request: Request, prefix: Sequence[int]) -> FinalBlocks | None:
        """Name what the prefix cache holds of a waiting request; None if that is nothing.

        The lease alone keeps these blocks: a request holds none itself before it is scheduled.
        """
        return self._lease(request, prefix)

    def lease_computed(self, request: Request) -> FinalBlocks | None:
        """Name what became final since the last call; the partial last block does once the prompt is computed."""
        is_whole_prompt = request.num_computed_tokens == request.num_tokens
        num_final = request.num_computed_tokens // self._tables.block_size
        return self._lease(request, request.block_table if is_whole_prompt else request.block_table[:num_final])

    def lease_named(
        self, request_id: str, names: Sequence[BlockHash], first_block: int, *, leaving: int
    ) -> FinalBlocks | None:
        """Lease the longest run of blocks at the start of ``names`` that is here; None if that is nothing.

        Whoever computed them, and whether they are cached or in use: a block has a name only when it is whole
        and final. The first of them is the ``first_block``-th of its sequence. Parked ones come back into the pool
        while ``leaving`` blocks stay available.
        """
        self._pool.restore(names, leaving=leaving)
        blocks = tuple(self._pool.find(names))
        if not blocks:
            return None
        return FinalBlocks(request_id, self._hold(blocks), first_block, blocks, tuple(names[: len(blocks)]))

    def lease_whole(self, request: Request) -> HandedOver:
        """Lease what ``lease_named`` would find of all that is computed of ``request``."""
        whole = self._tables.find_computed(request)
        hold = self._hold(whole) if whole else None
        return HandedOver(request.request_id, hold, len(whole), request.num_tokens)

    def release(self, hold: int) -> None:
        """End a lease.

        Raises:
            InternalError: there is no such lease, or not any more.
        """
        lease = Claim(Reason.LEASED, hold)
        if not self._pool.is_held(lease):
            raise InternalError(f"Hold {hold} was released twice, or never given.")
        self._pool.release(lease)

    def _lease(self, request: Request, final: Sequence[int]) -> FinalBlocks | None:
        first, end = request.num_exported_blocks, len(final)
        if end <= first:
            return None
        blocks = tuple(final[first:end])
        request.num_exported_blocks = end
        digests = self._tables.token_digests(request, first, end)
        return FinalBlocks(request.request_id, self._hold(blocks), first, blocks, digests)

    def _hold(self, blocks: Sequence[int]) -> int:
        hold = next(self._holds)
        self._pool.claim(blocks, Claim(Reason.LEASED, hold))
        return hold
