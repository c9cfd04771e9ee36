"""The pushes of one attempt: blocks that are final go out at once, in order, while the next chunk computes."""

import asyncio

from services.cluster.background import end_all
from services.engine.output import FinalBlocks
from services.engine.request import AttemptKey
from services.errors import InternalError, StaleEpoch, TandemError
from services.rpc import tandem_pb2 as pb
from services.telemetry.logs import get_logger
from services.telemetry.metrics import WorkerMetrics
from services.transfer.transport import BlockPair
from services.worker.node import Node
from services.worker.notice import Notice

_log = get_logger(__name__)
_RETRY_S = 0.1


class Outgoing:
    """Owns the holds of one attempt from the moment the engine names them until no push reads them.

    The pushes outlive a cancelled call: bytes that were posted cannot be called back, so a hold stays until
    the transport no longer reads its blocks. After ``close`` nothing more is posted.
    """

    def __init__(
        self, node: Node, metrics: WorkerMetrics, *, attempt: AttemptKey, target: pb.KVTarget, push_timeout_s: float
    ) -> None:
        self.attempt = attempt
        self.num_blocks = 0
        self.has_failed = False
        """Whether a push ended without certainty, so that bytes of it may still be on their way."""
        self.is_uncertain = False
        """Whether the transport was closed under a push: only the end of this process ends it for sure."""
        self.num_overlapped = 0
        """Pushes that had not ended when the step of the next chunk began."""
        self._node = node
        self._metrics = metrics
        self._agent = target.endpoint.agent
        self._first_wanted = target.first_block
        self._remote_blocks = tuple(target.block_ids)
        self._push_timeout_s = push_timeout_s
        self._is_closed = False
        self._writes: list[asyncio.Task[None]] = []
        self._holds: list[asyncio.Task[None]] = []
        self._ends_s: list[float | None] = []

    def post(self, final: FinalBlocks) -> None:
        """Start the push of what is wanted of ``final``.

        Raises:
            StaleEpoch: the attempt was left; the hold is released and nothing is posted.
            TandemError: an earlier push failed; this one is started nevertheless.
        """
        if self._is_closed:
            self._release(final)
            raise StaleEpoch(f"This attempt at {self.attempt.request_id} was left.")
        self._ends_s.append(None)
        write = asyncio.create_task(self._write(final, self.num_pushes - 1), name=f"push {self.attempt.request_id}")
        self._writes.append(write)
        self._holds.append(asyncio.create_task(self._hold(final, write), name=f"hold {self.attempt.request_id}"))
        for earlier in self._writes:
            if earlier.done():
                earlier.result()

    @property
    def num_pushes(self) -> int:
        """Pushes started."""
        return len(self._ends_s)

    def step_began(self, began_s: float) -> None:
        """Note when the step began whose blocks were posted last."""
        if self.num_pushes > 1:
            ended_s = self._ends_s[-2]
            self.num_overlapped += ended_s is None or began_s < ended_s

    def close(self) -> None:
        """Post nothing from now on."""
        self._is_closed = True

    async def all_pushed(self) -> None:
        """Wait until every push is done, or the first one failed.

        Raises:
            TandemError: one of them failed.
        """
        if self._writes:
            ended, _ = await asyncio.wait(self._writes, return_when=asyncio.FIRST_EXCEPTION)
            for write in ended:
                write.result()

    async def settle(self) -> None:
        """Wait until no push reads memory, whatever became of it; cancelling the wait cancels no push."""
        if self._holds:
            await asyncio.wait(self._holds)

    async def abandon(self) -> None:
        """Wait for nothing any more: the process, and with it the memory that pushes read, is about to end."""
        self.close()
        await end_all([*self._writes, *self._holds])

    async def _write(self, final: FinalBlocks, index: int) -> None:
        final = await self._sealed(final)
        skipped = max(0, self._first_wanted - final.first_block)
        local = final.block_ids[skipped:]
        if not local:
            return
        first = final.first_block + skipped
        start = first - self._first_wanted
        pairs = [BlockPair(*pair) for pair in zip(local, self._remote_blocks[start : start + len(local)], strict=True)]
        notice = Notice(self.attempt, first, final.token_digests[skipped:], final.payload_digests[skipped:])
        self.num_blocks += len(pairs)
        began_s = self._node.clock.now()
        await self._node.transfers.push(
            self._agent, pairs, notice.to_bytes(), timeout_s=self._push_timeout_s, key=final.hold
        )
        self._ends_s[index] = ended_s = self._node.clock.now()
        self._count(len(pairs), ended_s - began_s)

    async def _sealed(self, final: FinalBlocks) -> FinalBlocks:
        """Digest blocks that no step of this attempt made final, and that nobody digested therefore."""
        if final.payload_digests or not self._node.sealer.enabled:
            return final
        sealed = await asyncio.to_thread(self._node.sealer.seal, final)
        if self._is_closed:
            raise StaleEpoch(f"This attempt at {self.attempt.request_id} was left.")
        return sealed

    async def _hold(self, final: FinalBlocks, write: asyncio.Task[None]) -> None:
        await asyncio.wait({write})
        error = None if write.cancelled() else write.exception()
        if error is not None and not isinstance(error, StaleEpoch):  # a stale write was never posted
            self.has_failed = True
            code = error.code if isinstance(error, TandemError) else InternalError.code
            self._metrics.push_failures.labels(code=code).inc()
            _log.warning("push.failed", request_id=self.attempt.request_id, code=code, reason=str(error))
        while self._node.transfers.is_outstanding(final.hold):
            try:
                await self._node.transfers.wait_settled(final.hold, timeout_s=self._push_timeout_s)
            except TandemError as error:
                if self._node.transfers.is_closed:
                    self.is_uncertain = True
                    break
                _log.warning("push.outstanding", request_id=self.attempt.request_id, code=error.code)
                await self._node.clock.sleep(_RETRY_S)
        self._release(final)

    def _release(self, final: FinalBlocks) -> None:
        self._node.engine.post(lambda scheduler: scheduler.release(final.hold))

    def _count(self, num_blocks: int, duration_s: float) -> None:
        transport = self._node.transfers.endpoint.transport
        num_bytes = num_blocks * self._node.layout.block_bytes
        self._metrics.transferred_blocks.labels(transport=transport, direction="sent").inc(num_blocks)
        self._metrics.transferred_bytes.labels(transport=transport, direction="sent").inc(num_bytes)
        self._metrics.transfer_seconds.labels(transport=transport).observe(duration_s)
