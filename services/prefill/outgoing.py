"""The pushes of one attempt: blocks that became final go out at once, in order, while the next chunk computes."""

import asyncio

from services.engine.output import FinalBlocks
from services.engine.request import AttemptKey
from services.errors import PeerGone, PeerStalled
from services.rpc import tandem_pb2 as pb
from services.telemetry.logs import get_logger
from services.transfer.transport import BlockPair
from services.worker.node import Node
from services.worker.notice import Notice

_log = get_logger(__name__)


class Outgoing:
    """Owns the holds of one attempt from the moment the engine names them until their push ended.

    The pushes outlive a cancelled call: bytes that were posted cannot be called back, so the hold stays
    until the transport no longer reads the blocks.
    """

    def __init__(self, node: Node, *, attempt: AttemptKey, target: pb.KVTarget, push_timeout_s: float) -> None:
        self.attempt = attempt
        self.num_blocks = 0
        self._node = node
        self._agent = target.endpoint.agent
        self._first_wanted = target.first_block
        self._remote_blocks = tuple(target.block_ids)
        self._push_timeout_s = push_timeout_s
        self._pushes: set[asyncio.Task[None]] = set()

    def post(self, final: FinalBlocks) -> None:
        """Start the push of what is wanted of ``final``."""
        task = asyncio.create_task(self._push(final), name=f"push {self.attempt.request_id}")
        self._pushes.add(task)

    async def all_pushed(self) -> None:
        """Wait until every push ended.

        Raises:
            PeerError: one of them failed.
        """
        await self.settle()
        for push in self._pushes:
            push.result()

    async def settle(self) -> None:
        """Wait until no push is running, whatever became of it; cancelling the wait cancels no push."""
        if self._pushes:
            await asyncio.wait(self._pushes)

    async def _push(self, final: FinalBlocks) -> None:
        try:
            skipped = max(0, self._first_wanted - final.first_block)
            if skipped < len(final.block_ids):
                await self._write(final, skipped)
        finally:
            await self._until_memory_is_not_read()
            self._node.engine.post(lambda scheduler: scheduler.release(final.hold))

    async def _write(self, final: FinalBlocks, skipped: int) -> None:
        first = final.first_block + skipped
        local = final.block_ids[skipped:]
        start = first - self._first_wanted
        pairs = [BlockPair(*pair) for pair in zip(local, self._remote_blocks[start : start + len(local)], strict=True)]
        notice = Notice(self.attempt, first, final.token_digests[skipped:], final.payload_digests[skipped:])
        self.num_blocks += len(pairs)
        await self._node.transfers.push(
            self._agent, pairs, notice.to_bytes(), timeout_s=self._push_timeout_s, key=self.attempt
        )

    async def _until_memory_is_not_read(self) -> None:
        while self._node.transfers.is_outstanding(self.attempt):
            try:
                await self._node.transfers.wait_settled(self.attempt, timeout_s=self._push_timeout_s)
            except PeerStalled:
                _log.warning("push.outstanding", request_id=self.attempt.request_id)
            except PeerGone:
                return  # the transfer thread is closed, and with it the transport
