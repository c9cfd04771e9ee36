"""Ends quarantines: by the peer's word that nothing is outstanding, or by its death plus a grace period.

A lapsed lease or a released handle never ends a quarantine: bytes of a stopped sender land after it goes on.
"""

import asyncio

from services.engine.request import AttemptKey
from services.errors import IncompatiblePeer, PeerGone, TandemError
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.telemetry.logs import get_logger
from services.worker.node import Node

_log = get_logger(__name__)
_ASK_TIMEOUT_S = 35.0
_RETRY_S = 1.0


class Settling:
    """Owns the quarantines of one worker; one task per attempt that was left with an unknown outcome."""

    def __init__(self, node: Node, channels: Channels, *, grace_s: float) -> None:
        self._node = node
        self._channels = channels
        self._grace_s = grace_s
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, attempt: AttemptKey, candidate: pb.PrefillCandidate) -> None:
        """Give the attempt's blocks back once no write of it can land any more."""
        task = asyncio.create_task(self._settle(attempt, candidate), name=f"settle {attempt.request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop waiting; the process, and with it its memory, is about to end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle(self, attempt: AttemptKey, candidate: pb.PrefillCandidate) -> None:
        began_s = self._node.clock.now()
        while True:
            try:
                await self._ask(attempt, candidate)
                break
            except (PeerGone, IncompatiblePeer):  # refused, or another incarnation answers: the writer is dead
                await self._node.clock.sleep(self._grace_s)
                break
            except TandemError as error:
                _log.warning("quarantine.waiting", request_id=attempt.request_id, code=error.code)
                await self._node.clock.sleep(_RETRY_S)
        self._node.engine.post(lambda scheduler: scheduler.settle(attempt))
        _log.event("quarantine.ended", request_id=attempt.request_id, after_s=self._node.clock.now() - began_s)

    async def _ask(self, attempt: AttemptKey, candidate: pb.PrefillCandidate) -> None:
        request = pb.SettleRequest(request_id=attempt.request_id, epoch=attempt.epoch, member_id=candidate.member_id)
        with translated():
            await self._channels.prefill(candidate.address).Settle(request, timeout=_ASK_TIMEOUT_S)
