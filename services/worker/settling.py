"""Ends quarantines: by the peer's word that it will write nothing any more, or by its death.

A peer whose push failed removes us from its transport before it says so, and then holds nothing that it could
send, however long it stands still; a dead one holds nothing either. What both had sent may still lie in the
kernels and the network between, for which a grace period follows.

A lapsed lease, a lost connection or a released handle never ends a quarantine: bytes of a stopped sender land
after it goes on. Dead is a peer at whose address nobody listens any more, or another process answers.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from services.cluster.background import Background
from services.engine.request import AttemptKey, Outcome
from services.errors import AuthenticationFailed, IncompatiblePeer, PeerGone, TandemError
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.liveness import is_refused
from services.telemetry.logs import get_logger
from services.telemetry.metrics import WorkerMetrics
from services.worker.attempt import Attempt, Leaving, Peer
from services.worker.node import Node

_log = get_logger(__name__)
_PROBE_TIMEOUT_S = 5.0
_RETRY_S = 1.0
_GRACE_STEPS = 10
"""So that a grace period in which this process stood still, and took nothing from its kernel, is not over at once."""


class Settling:
    """Owns the quarantines of one worker; one task per attempt that was left with an unknown outcome."""

    def __init__(
        self,
        node: Node,
        channels: Channels,
        metrics: WorkerMetrics,
        *,
        grace_s: float,
        ask_timeout_s: float = 35.0,
    ) -> None:
        self._node = node
        self._channels = channels
        self._metrics = metrics
        self._grace_s = grace_s
        self._ask_timeout_s = ask_timeout_s
        self._watching: dict[AttemptKey, Background] = {}

    @contextmanager
    def leaving(self, attempt: Attempt | None) -> Iterator[Leaving]:
        """Leave an attempt, if there is one; the command inside tells the engine, then its quarantine is watched."""
        leaving = attempt.leave() if attempt is not None else Leaving(0, Outcome.NOTHING_POSTED)
        if attempt is None or attempt.peer is None:
            yield leaving
            return
        self._count(attempt, attempt.peer, leaving)
        try:
            yield leaving
        finally:
            if leaving.num_arrived < attempt.num_wanted and leaving.outcome is Outcome.UNKNOWN:
                self.watch(attempt.key, attempt.peer)

    def _count(self, attempt: Attempt, peer: Peer, leaving: Leaving) -> None:
        has_all = leaving.num_arrived == attempt.num_wanted
        is_known = leaving.outcome is Outcome.NOTHING_POSTED  # of those that did not arrive
        outcome = "arrived" if has_all or (is_known and leaving.num_arrived) else leaving.outcome.value
        counter = self._metrics.attempts if peer.computes else self._metrics.fetches
        counter.labels(outcome=outcome.replace(" ", "_")).inc()
        if leaving.outcome is Outcome.UNKNOWN:
            self._metrics.quarantined_blocks.inc(attempt.num_wanted - leaving.num_arrived)

    def watch(self, attempt: AttemptKey, peer: Peer) -> None:
        """Give the attempt's blocks back once no write of it can land any more."""
        self._watching[attempt] = watching = Background(f"settle {attempt.request_id}", _log, self._node.clock)
        watching.start(lambda: self._settle(attempt, peer))

    async def close(self) -> None:
        """Stop waiting; the process, and with it its memory, is about to end."""
        await asyncio.gather(*(watching.close() for watching in self._watching.values()))

    async def _settle(self, attempt: AttemptKey, peer: Peer) -> None:
        began_s = self._node.clock.now()
        while True:
            try:
                reply = await self._ask(attempt, peer)
                if reply.push_failed:
                    await self._grace()
                break
            except TandemError as error:
                if await self._is_dead(peer, error):
                    await self._grace()
                    break
                _log.warning("quarantine.waiting", request_id=attempt.request_id, code=error.code)
                await self._node.clock.sleep(_RETRY_S)
        self._node.engine.post(lambda scheduler: scheduler.settle(attempt))
        del self._watching[attempt]
        _log.event("quarantine.ended", request_id=attempt.request_id, after_s=self._node.clock.now() - began_s)

    async def _grace(self) -> None:
        for _ in range(_GRACE_STEPS):
            await self._node.clock.sleep(self._grace_s / _GRACE_STEPS)

    async def _is_dead(self, peer: Peer, error: TandemError) -> bool:
        if isinstance(error, PeerGone):
            return await is_refused(peer.address, _PROBE_TIMEOUT_S)
        return isinstance(error, IncompatiblePeer | AuthenticationFailed)  # another incarnation answers

    async def _ask(self, attempt: AttemptKey, peer: Peer) -> pb.SettleReply:
        request = pb.SettleRequest(request_id=attempt.request_id, epoch=attempt.epoch, member_id=peer.member_id)
        service = self._channels.prefill(peer.address) if peer.computes else self._channels.kv(peer.address)
        with translated():
            return await service.Settle(request, timeout=self._ask_timeout_s)
