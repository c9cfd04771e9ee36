"""The block table of each request: a shared prefix found, own blocks added, whole blocks published."""

from collections.abc import Sequence

from services.engine.blocks import BlockPool, Claim, Reason
from services.engine.request import Request
from services.kv.hashes import BlockHash, chain, token_digests


class BlockTables:
    """Moves blocks between the pool and the requests of one engine."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.block_size = block_size
        self._pool = pool

    def num_blocks(self, num_tokens: int) -> int:
        """Return how many blocks hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, request: Request) -> list[int]:
        """Return cached blocks of the request's first tokens, leaving at least one token to compute."""
        limit = (request.num_tokens - 1) // self.block_size
        return self._pool.find(self._hashes(request)[:limit])

    def restore(self, request: Request, *, leaving: int) -> None:
        """Bring back from host memory what was parked of the request's first tokens."""
        self._pool.restore(self._hashes(request), leaving=leaving)

    def find_computed(self, request: Request) -> list[int]:
        """Return findable blocks of the request's computed tokens: its own, or equal ones that were there before."""
        return self._pool.find(self._hashes(request)[: request.num_computed_tokens // self.block_size])

    def fits(self, request: Request, prefix: Sequence[int], *, leaving: int) -> bool:
        """Whether all tokens of ``request`` find room behind ``prefix``, with ``leaving`` blocks still available."""
        num_fresh = self.num_blocks(request.num_tokens) - len(prefix)
        return self._pool.fits(num_fresh, sharing=prefix, leaving=leaving)

    def fill(self, request: Request, prefix: Sequence[int], fresh: Claim) -> None:
        """Give ``request`` the blocks of ``prefix`` and, under the claim ``fresh``, new ones for the rest."""
        self._pool.claim(prefix, use_of(request))
        request.block_table.extend(prefix)
        self.extend(request, fresh)

    def extend(self, request: Request, fresh: Claim, *, num_more: int = 0) -> None:
        """Add blocks under the claim ``fresh`` until all tokens of ``request`` and ``num_more`` others have room.

        Raises:
            PoolExhausted: there are not enough; nothing was added.
        """
        num_needed = -(-(len(request.token_ids) + num_more) // self.block_size)
        request.block_table += self._pool.take(num_needed - len(request.block_table), fresh)

    def room(self, request: Request) -> int:
        """Return how many tokens the table covers beyond those of ``request``; negative if it lacks blocks."""
        return len(request.block_table) * self.block_size - len(request.token_ids)

    def publish(self, request: Request, first_block: int) -> None:
        """Make the request's whole computed blocks findable from its ``first_block``-th on."""
        last = request.num_computed_tokens // self.block_size
        if first_block < last:
            hashes, table, publish = self._hashes(request), request.block_table, self._pool.publish
            for index in range(first_block, last):
                publish(table[index], hashes[index], index)

    def release(self, request: Request) -> None:
        """Take all blocks back; published ones stay cached until somebody needs the room."""
        if num_whole := min(request.num_computed_tokens // self.block_size, len(request.block_hashes)):
            self._pool.ended(request.block_hashes[num_whole - 1])
        self._pool.release(use_of(request))
        request.block_table.clear()
        request.num_computed_tokens = 0

    def token_digests(self, request: Request, first_block: int, end_block: int) -> tuple[BlockHash, ...]:
        """Return the digests of the blocks ``first_block .. end_block - 1``, a partial last one included."""
        hashes = self._hashes(request)
        digests = tuple(hashes[first_block:end_block])
        if end_block <= len(hashes):
            return digests
        parent = hashes[-1] if hashes else request.spec.cache_seed
        return (*digests, chain(parent, request.token_ids[len(hashes) * self.block_size :]))

    def _hashes(self, request: Request) -> list[BlockHash]:
        """Return the hashes of all whole blocks, after computing those of new ones."""
        hashes, token_ids, block_size = request.block_hashes, request.token_ids, self.block_size
        num_hashed, num_whole = len(hashes) * block_size, len(token_ids) // block_size * block_size
        if num_hashed < num_whole:
            parent = hashes[-1] if hashes else request.spec.cache_seed
            hashes += token_digests(parent, token_ids[num_hashed:num_whole], block_size)
        return hashes


def use_of(request: Request) -> Claim:
    """Return the claim under which a request reads and writes its blocks."""
    return Claim(Reason.USED, request.request_id)
