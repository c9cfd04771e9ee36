"""The attempts at which this worker pushes blocks, whatever they are pushed for, and what became of their writes.

begin ──> live ──left, nothing outstanding──> over: remembered for questions and for calls that come late
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from services.cluster.background import end_all
from services.engine.request import AttemptKey
from services.errors import InvalidRequest, PeerStalled, StaleEpoch
from services.rpc import tandem_pb2 as pb
from services.telemetry.logs import get_logger
from services.telemetry.metrics import WorkerMetrics
from services.worker.convert import endpoint_from_message
from services.worker.node import Node
from services.worker.outgoing import Outgoing

_log = get_logger(__name__)
_CONNECT_TIMEOUT_S = 10.0
_SETTLE_TIMEOUT_S = 30.0
_MAX_OVER = 4096
"""Attempts remembered after their end, for questions about them and for calls that come later than those."""


class Exporter:
    """One per worker; ``Prefill.Run`` and ``KV.Fetch`` push through it, and ``Settle`` asks it."""

    def __init__(self, node: Node, metrics: WorkerMetrics, *, push_timeout_s: float) -> None:
        self._node = node
        self._metrics = metrics
        self._push_timeout_s = push_timeout_s
        self._over: OrderedDict[AttemptKey, pb.SettleReply] = OrderedDict()
        self._live: dict[AttemptKey, Outgoing] = {}
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def num_live(self) -> int:
        """Attempts that run or have a write outstanding."""
        return len(self._live)

    @asynccontextmanager
    async def attempt(
        self, key: AttemptKey, target: pb.KVTarget, *, on_settled: Callable[[Outgoing], None] | None = None
    ) -> AsyncGenerator[Outgoing, None]:
        """Push to ``target`` inside the block; after it nothing is posted, and what was posted is waited for.

        ``on_settled`` is called when no push of the attempt reads memory any more, however its block was left.

        Raises:
            StaleEpoch: the attempt is over.
            InvalidRequest: it runs already.
            PeerError: the target cannot be reached.
        """
        outgoing = self._begin(key, target)
        try:
            await self._node.transfers.connect(endpoint_from_message(target.endpoint), timeout_s=_CONNECT_TIMEOUT_S)
            yield outgoing
        finally:
            outgoing.close()
            self._forget_when_settled(outgoing, on_settled)

    async def settle(self, request: pb.SettleRequest) -> pb.SettleReply:
        """Answer once no write of the attempt is outstanding and none will be posted.

        Raises:
            IncompatiblePeer: another incarnation was meant.
            PeerStalled: a write is outstanding for too long, or will be until this process ends.
        """
        self._node.require_member(request.member_id)
        key = AttemptKey(request.request_id, request.epoch)
        outgoing = self._live.get(key)
        if outgoing is None:
            return self._over.get(key) or self._remember(key, pb.SettleReply())
        outgoing.close()  # the end of its call may reach us later than this one
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                await outgoing.settle()
        except TimeoutError as error:
            raise PeerStalled(f"A write of {key.request_id} is still outstanding.") from error
        if outgoing.is_uncertain:
            raise PeerStalled(f"A write of {key.request_id} was outstanding when this worker closed its transport.")
        return _reply_for(outgoing)

    async def close(self, timeout_s: float) -> None:
        """Wait so long for what is outstanding, then give it up; before the transport is closed. Idempotent."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=timeout_s)
        if self._live:
            _log.warning("exports.abandoned", attempts=len(self._live))
        await asyncio.gather(*(outgoing.abandon() for outgoing in self._live.values()))
        await end_all(self._settling)

    def _begin(self, key: AttemptKey, target: pb.KVTarget) -> Outgoing:
        """Open an attempt; from here on it is over only when nothing of it is outstanding."""
        if key in self._over:
            raise StaleEpoch(f"This attempt at {key.request_id} is over.")
        if key in self._live:
            raise InvalidRequest(f"This attempt at {key.request_id} runs already.", param="epoch")
        outgoing = Outgoing(self._node, self._metrics, attempt=key, target=target, push_timeout_s=self._push_timeout_s)
        self._live[key] = outgoing
        return outgoing

    def _remember(self, key: AttemptKey, reply: pb.SettleReply) -> pb.SettleReply:
        self._over[key] = reply
        if len(self._over) > _MAX_OVER:
            self._over.popitem(last=False)
        return reply

    def _forget_when_settled(self, outgoing: Outgoing, on_settled: Callable[[Outgoing], None] | None) -> None:
        async def forget() -> None:
            await outgoing.settle()
            if outgoing.is_uncertain:
                return  # whoever asks is told so for as long as this process lives
            if on_settled is not None:
                on_settled(outgoing)
            del self._live[outgoing.attempt]
            self._remember(outgoing.attempt, _reply_for(outgoing))

        task = asyncio.create_task(forget(), name=f"settle {outgoing.attempt.request_id}")
        self._settling.add(task)
        task.add_done_callback(self._settled)

    def _settled(self, task: "asyncio.Task[None]") -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.failure("export.defect", error, task=task.get_name())


def _reply_for(outgoing: Outgoing) -> pb.SettleReply:
    return pb.SettleReply(anything_posted=outgoing.num_blocks > 0, push_failed=outgoing.has_failed)
