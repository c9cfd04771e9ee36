"""How many sequences a worker that leaves gives away: what others have room for, by their last word."""

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.decode.handover import Handover
from services.decode.settings import DecodeSettings
from services.engine.output import HandedOver
from services.errors import InternalError
from services.kv.layout import KVLayout
from services.telemetry.clock import ManualClock
from services.telemetry.metrics import WorkerMetrics
from services.worker.kept_blocks import KeptBlocks
from services.worker.node import Node

BLOCK_SIZE = 4
LAYOUT = KVLayout("model", "exact", BLOCK_SIZE, ())


class PlayedEngine:
    """Holds sequences of so many tokens, and gives one up as a scheduler does."""

    def __init__(self, **num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.left: list[str] = []
        self.num_calls = 0
        self.error: InternalError | None = None

    async def call(self, command: Any) -> Any:
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        return command(self)

    def hand_over(self, request_id: str, *, max_tokens: int) -> HandedOver | None:
        if self.num_tokens.get(request_id, max_tokens + 1) > max_tokens:
            return None
        num_tokens = self.num_tokens.pop(request_id)
        return HandedOver(request_id, 1, num_tokens // BLOCK_SIZE, num_tokens)

    def emit(self, event: HandedOver) -> None:
        self.left.append(event.request_id)


class Scene:
    """A worker that leaves, with sequences that all run."""

    def __init__(self, room: int, **num_tokens: int) -> None:
        self.room = room
        self.clock = ManualClock()
        self.engine = PlayedEngine(**num_tokens)
        node = cast(Node, SimpleNamespace(engine=self.engine, layout=LAYOUT, clock=self.clock))
        self.handover = Handover(
            node,
            KeptBlocks(node),
            WorkerMetrics(CollectorRegistry()),
            settings=DecodeSettings(),
            room=lambda: self.room,
        )
        self.streams = ExitStack()
        for request_id in num_tokens:
            self.streams.enter_context(self.handover.running(request_id))

    async def press(self) -> list[str]:
        """Let the drain's time come, and return who has left so far."""
        await self.handover.begin_if_due(waited_s=30.0, timeout_s=60.0)
        return self.engine.left


async def test_all_go_if_there_is_room_for_all_and_a_block_to_grow_for_each() -> None:
    assert await Scene(5, one=8, two=4).press() == ["one", "two"]
    assert await Scene(4, one=8, two=4).press() == ["one"]


async def test_one_that_is_too_long_does_not_keep_a_shorter_one() -> None:
    assert await Scene(4, one=40, two=9).press() == ["two"]


async def test_without_room_nobody_goes() -> None:
    for room in (0, 1):
        assert await Scene(room, one=1).press() == []


async def test_what_was_given_away_counts_until_the_others_can_have_told_of_it() -> None:
    scene = Scene(4, one=8, two=8)
    for _ in range(3):
        assert await scene.press() == ["one"]
    scene.clock.advance(5.1)
    assert await scene.press() == ["one", "two"]


async def test_it_begins_after_its_time_or_half_of_the_drain() -> None:
    scene = Scene(99, one=8)
    for waited_s, timeout_s in [(0.0, 10.0), (4.9, 10.0), (29.9, 100.0)]:
        await scene.handover.begin_if_due(waited_s=waited_s, timeout_s=timeout_s)
    assert scene.engine.num_calls == 0
    await scene.handover.begin_if_due(waited_s=5.0, timeout_s=10.0)
    assert scene.engine.left == ["one"]


async def test_with_no_stream_open_the_engine_is_left_in_peace() -> None:
    scene = Scene(99, one=8)
    scene.streams.close()
    assert await scene.press() == []
    assert (scene.engine.num_calls, scene.handover.num_running) == (0, 0)


async def test_an_engine_that_is_over_does_not_end_the_drain() -> None:
    scene = Scene(99, one=8)
    scene.engine.error = InternalError("a broken kernel")
    assert await scene.press() == []
