"""Blocks that a peer writes: reserved under an attempt, then used, freed or quarantined.

    open ──> reserved ──leave──> arrived: used and published
                            ├──> nothing was posted: free
                            └──> unknown: quarantined, until settle(attempt)

However a reservation ends (started, tried again, computed here, cancelled), it ends by ``leave``.
"""

from dataclasses import dataclass

from services.engine.blocks import BlockPool, Claim, Reason
from services.engine.output import Reservation
from services.engine.request import AttemptKey, Outcome, Request
from services.engine.tables import BlockTables, use_of
from services.errors import InvalidRequest, PoolExhausted


@dataclass(frozen=True)
class _Attempt:
    key: AttemptKey
    first_wanted: int


class Reservations:
    """The open attempts of one engine, at most one per request, and the quarantine that others left behind."""

    def __init__(self, pool: BlockPool, tables: BlockTables, max_reserved_blocks: int) -> None:
        self._pool = pool
        self._tables = tables
        self._max_reserved_blocks = max_reserved_blocks
        self._attempts: dict[str, _Attempt] = {}

    def open(self, request: Request, key: AttemptKey, *, leaving: int) -> Reservation:
        """Pin what is cached of ``request`` and reserve the rest, with ``leaving`` blocks still available.

        Raises:
            PoolExhausted: not enough blocks now.
            InvalidRequest: the attempt is not new, or is another request's.
        """
        self._check_new(request, key)
        prefix = self._tables.find_prefix(request)
        self._check_share(self._tables.num_blocks(request.num_tokens) - len(prefix))
        if not self._tables.fits(request, prefix, leaving=leaving):
            raise PoolExhausted("There are not enough KV blocks for this prompt now.")
        request.num_cached_tokens = len(prefix) * self._tables.block_size
        self._tables.fill(request, prefix, _reserved(key))
        return self._opened(request, key, first_wanted=len(prefix))

    def reopen(
        self, request: Request, key: AttemptKey, *, num_arrived: int, outcome: Outcome, leaving: int
    ) -> Reservation:
        """Leave the current attempt and reserve what did not arrive for another one.

        Blocks lost to quarantine are replaced while ``leaving`` blocks stay available; others need no room.

        Raises:
            PoolExhausted: no fresh blocks; ``request`` holds only what arrived, and no attempt is open.
            InvalidRequest: the attempt is not new, or ``num_arrived`` is out of range; nothing has changed.
        """
        self._check_new(request, key)
        num_spare = self._pool.num_available - leaving
        num_lost = self.leave(request, num_arrived=num_arrived, outcome=outcome)
        if num_lost > max(num_spare, 0):
            raise PoolExhausted("There are not enough KV blocks for another attempt now.")
        first_wanted = len(request.block_table)
        self._tables.extend(request, _reserved(key))
        return self._opened(request, key, first_wanted=first_wanted)

    def leave(self, request: Request, *, num_arrived: int, outcome: Outcome) -> int:
        """End the attempt: keep and publish the first ``num_arrived`` wanted blocks, give up the others.

        Returns how many blocks were quarantined. ``request`` has computed what its table now holds.

        Raises:
            InvalidRequest: ``num_arrived`` is out of range; nothing has changed.
        """
        attempt = self._attempts[request.request_id]
        end = attempt.first_wanted + num_arrived
        if not attempt.first_wanted <= end <= len(request.block_table):
            raise InvalidRequest(f"{num_arrived} blocks cannot have arrived.", param="num_arrived")
        del self._attempts[request.request_id]
        arrived, others = request.block_table[attempt.first_wanted : end], request.block_table[end:]
        num_lost = len(others) if outcome is Outcome.UNKNOWN else 0
        self._pool.claim(arrived, use_of(request))
        self._pool.claim(others[:num_lost], Claim(Reason.QUARANTINED, attempt.key))
        self._pool.release(_reserved(attempt.key))
        del request.block_table[end:]
        request.num_computed_tokens = min(end * self._tables.block_size, request.num_tokens)
        self._tables.publish(request, attempt.first_wanted)
        return num_lost

    def complete(self, request: Request) -> None:
        """End the attempt: all wanted blocks arrived."""
        num_wanted = len(request.block_table) - self._attempts[request.request_id].first_wanted
        self.leave(request, num_arrived=num_wanted, outcome=Outcome.NOTHING_POSTED)

    def settle(self, key: AttemptKey) -> None:
        """End the quarantine that ``key`` left behind."""
        self._pool.release(Claim(Reason.QUARANTINED, key))

    def _opened(self, request: Request, key: AttemptKey, *, first_wanted: int) -> Reservation:
        self._attempts[request.request_id] = _Attempt(key, first_wanted)
        return Reservation(
            request_id=request.request_id,
            block_table=tuple(request.block_table),
            first_wanted=first_wanted,
            num_cached_tokens=request.num_cached_tokens or 0,
            token_digests=self._tables.token_digests(request, 0, len(request.block_table)),
        )

    def _check_new(self, request: Request, key: AttemptKey) -> None:
        quarantine = Claim(Reason.QUARANTINED, key)
        is_known = self._pool.is_held(_reserved(key)) or self._pool.is_held(quarantine)
        if key.request_id != request.request_id or is_known:
            raise InvalidRequest(f"{key} is not a new attempt at request {request.request_id}.", param="attempt")

    def _check_share(self, num_wanted: int) -> None:
        """A prompt above the share is taken when it is the only one: it would have to wait for ever."""
        num_reserved = self._pool.num_claimed(Reason.RESERVED)
        if num_reserved and num_reserved + num_wanted > self._max_reserved_blocks:
            raise PoolExhausted("Too many KV blocks are reserved for prompts on their way.")


def _reserved(key: AttemptKey) -> Claim:
    return Claim(Reason.RESERVED, key)
