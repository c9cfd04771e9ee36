"""What has arrived for each open attempt: notices are checked here before a block may be read.

Notices come on the transfer thread, which also digests the bytes; the event loop waits. A notice of an
attempt that is over is counted and ignored: an epoch stops late notices (late bytes land in quarantine).
"""

import asyncio

from services.engine.output import Reservation
from services.engine.request import AttemptKey
from services.errors import IntegrityError, PayloadDigestMismatch, StaleEpoch, TokenDigestMismatch
from services.telemetry.logs import get_logger
from services.telemetry.metrics import WorkerMetrics
from services.worker.notice import Notice
from services.worker.seal import Sealer

_log = get_logger(__name__)


class Arrival:
    """The blocks that one attempt waits for."""

    def __init__(self, attempt: AttemptKey, reservation: Reservation, sealer: Sealer) -> None:
        self.attempt = attempt
        self._reservation = reservation
        self._sealer = sealer
        self._loop = asyncio.get_running_loop()
        self._verified = [False] * (len(reservation.block_table) - reservation.first_wanted)
        self._changed = asyncio.Event()
        self._failure: IntegrityError | None = None

    @property
    def num_arrived(self) -> int:
        """Wanted blocks, from the first one on without a gap, that arrived and were verified."""
        return self._verified.index(False) if False in self._verified else len(self._verified)

    async def verified(self, num_blocks: int) -> None:
        """Wait until the first ``num_blocks`` wanted blocks arrived and were verified.

        Raises:
            IntegrityError: something that arrived is not what was announced or wanted.
        """
        while self._failure is None and self.num_arrived < num_blocks:
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def record(self, notice: Notice) -> None:
        """Check the blocks of a notice (transfer thread).

        Raises:
            IntegrityError: the blocks are not those that were wanted, or their bytes changed.
        """
        first = notice.first_block - self._reservation.first_wanted
        last = first + len(notice.token_digests)
        if first < 0 or last > len(self._verified):
            raise IntegrityError(f"A notice names blocks {first} to {last} of {len(self._verified)} that were wanted.")
        table_first = notice.first_block
        expected = self._reservation.token_digests[table_first : table_first + last - first]
        if tuple(expected) != tuple(notice.token_digests):
            raise TokenDigestMismatch(f"Blocks from {table_first} on were computed from other tokens.")
        blocks = self._reservation.block_table[table_first : table_first + last - first]
        if self._sealer.enabled and self._sealer.digests(blocks) != tuple(notice.payload_digests):
            raise PayloadDigestMismatch(f"Blocks from {table_first} on are not what was sent.")
        self._verified[first:last] = [True] * (last - first)

    def fail(self, error: IntegrityError) -> None:
        """End the wait with an error (transfer thread)."""
        self._failure = error

    def announce(self) -> None:
        """Wake the waiter (transfer thread)."""
        self._loop.call_soon_threadsafe(self._changed.set)


class Arrivals:
    """All open attempts of this worker."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._open: dict[AttemptKey, Arrival] = {}

    def open(self, attempt: AttemptKey, reservation: Reservation, sealer: Sealer) -> Arrival:
        """Start to accept notices of an attempt."""
        arrival = Arrival(attempt, reservation, sealer)
        self._open[attempt] = arrival
        return arrival

    def close(self, attempt: AttemptKey) -> None:
        """Stop to accept notices of an attempt; one that is being checked no longer matters."""
        self._open.pop(attempt, None)

    def on_notice(self, agent: str, data: bytes) -> None:
        """Take a notice (transfer thread)."""
        try:
            notice = Notice.from_bytes(data)
        except IntegrityError as error:
            self._refused(error, agent, "")
            return
        arrival = self._open.get(notice.attempt)
        if arrival is None:
            self._refused(StaleEpoch("The attempt is over."), agent, notice.attempt.request_id)
            return
        try:
            arrival.record(notice)
        except IntegrityError as error:
            self._refused(error, agent, notice.attempt.request_id)
            arrival.fail(error)
        arrival.announce()

    def _refused(self, error: IntegrityError, agent: str, request_id: str) -> None:
        if isinstance(error, StaleEpoch):
            self._metrics.stale_notices.inc()
        else:
            self._metrics.integrity_failures.labels(kind=error.code).inc()
        _log.warning("notice.refused", code=error.code, agent=agent, request_id=request_id, reason=error.message)
