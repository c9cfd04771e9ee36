"""How a decode worker that leaves gives its sequences to others: all tokens were sent, the KV waits to be fetched."""

from collections import Counter, deque
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
_LOAD_DELAY_S = 5.0
"""Longest time from a change of a worker's load until the others know of it."""


class Handover:
    """Knows the sequences that run here, and which of them left."""

    def __init__(
        self,
        node: Node,
        kept: KeptBlocks,
        metrics: WorkerMetrics,
        *,
        settings: DecodeSettings,
        room: Callable[[], int],
    ) -> None:
        """``room`` tells how many blocks other workers have for what is handed over, by their last word."""
        self._node = node
        self._kept = kept
        self._metrics = metrics
        self._settings = settings
        self._room = room
        self._running: Counter[str] = Counter()
        self._given: deque[tuple[float, int]] = deque()
        """When how many blocks were given away that the others may not have told of yet."""

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
        """Hand over what runs if it had its time, and as much of it as the others have room for.

        What finds no room may use all the time that is left: here it can end, there it would be refused. A
        prompt that a peer still writes is left alone until it runs.
        """
        if not self._running or waited_s < min(self._settings.handover_after_s, timeout_s / 2):
            return
        room = self._room() - self._num_given()
        try:
            num_given = await self._node.engine.call(lambda scheduler: self._hand_over(scheduler, room))
        except TandemError as error:  # the engine is over, and with it every stream
            _log.warning("handover.impossible", code=error.code, reason=error.message)
        else:
            self._given.append((self._node.clock.now(), num_given))

    def _num_given(self) -> int:
        while self._given and self._given[0][0] < self._node.clock.now() - _LOAD_DELAY_S:
            self._given.popleft()
        return sum(num_blocks for _, num_blocks in self._given)

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

    def _hand_over(self, scheduler: Scheduler, room: int) -> int:
        """End what runs, between two steps (on the engine thread); return how many blocks it takes elsewhere.

        The streams hear of it after their last tokens.
        """
        num_given = 0
        for request_id in list(self._running):
            max_tokens = (room - num_given - 1) * self._node.layout.block_size  # one block to grow into
            left = scheduler.hand_over(request_id, max_tokens=max_tokens)
            if left is not None:
                num_given += self._node.layout.num_blocks(left.num_tokens) + 1
                self._node.engine.emit(left)
        return num_given
