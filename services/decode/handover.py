"""How a decode worker that leaves gives its sequences to others: all tokens were sent, the KV waits to be fetched."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.decode.settings import DecodeSettings
from services.engine.output import HandedOver
from services.engine.scheduler import Scheduler
from services.errors import TandemError
from services.rpc import tandem_pb2 as pb
from services.telemetry.logs import get_logger
from services.telemetry.metrics import WorkerMetrics
from services.worker.kept_blocks import KeptBlocks
from services.worker.node import Node

_log = get_logger(__name__)


class Handover:
    """Knows the sequences that run here, and which of them left."""

    def __init__(
        self,
        node: Node,
        kept: KeptBlocks,
        metrics: WorkerMetrics,
        *,
        settings: DecodeSettings,
        has_peer: Callable[[], bool],
    ) -> None:
        """``has_peer`` tells whether another worker could go on with what is handed over."""
        self._node = node
        self._kept = kept
        self._metrics = metrics
        self._settings = settings
        self._has_peer = has_peer
        self._running: Counter[str] = Counter()

    @property
    def num_running(self) -> int:
        """Sequences whose streams are open."""
        return self._running.total()

    @property
    def num_kept(self) -> int:
        """Sequences whose KV waits for whoever goes on with them."""
        return len(self._kept)

    @contextmanager
    def running(self, request_id: str) -> Iterator[None]:
        """Count one sequence for the length of the block."""
        self._running[request_id] += 1
        try:
            yield
        finally:
            self._running[request_id] -= 1
            self._running += Counter()  # forgets those at zero

    async def begin_if_due(self, *, waited_s: float, timeout_s: float) -> None:
        """Hand over what runs if it had its time; without anybody to go on with it, it may use all that is left.

        A prompt that a peer still writes is left alone: it is handed over when it runs.
        """
        if waited_s < min(self._settings.handover_after_s, timeout_s / 2) or not self._has_peer():
            return
        try:
            await self._node.engine.call(self._hand_over)
        except TandemError as error:  # the engine is over, and with it every stream
            _log.warning("handover.impossible", code=error.code, reason=error.message)

    def keep(self, left: HandedOver) -> pb.HandedOver:
        """Own the blocks of a sequence that left, and return what its caller is told."""
        self._metrics.handed_over.inc()
        _log.event("sequence.handed_over", request_id=left.request_id, blocks=left.num_blocks)
        load = self._node.load_message()
        if left.hold is None:
            return pb.HandedOver(load=load)
        keep_s = self._settings.handover_keep_s
        self._kept.keep(left.request_id, left.hold, keep_s=keep_s)
        return pb.HandedOver(kept_as=left.request_id, blocks=left.num_blocks, keep_s=keep_s, load=load)

    def _hand_over(self, scheduler: Scheduler) -> None:
        """End what runs, between two steps (on the engine thread); the streams hear of it after their last tokens."""
        for request_id in list(self._running):
            left = scheduler.hand_over(request_id)
            if left is not None:
                self._node.engine.emit(left)
