"""Each step of a transport can be late, lost, doubled, wrong, or the last thing that a process does."""

import signal
from contextlib import ExitStack, closing
from typing import Any

import pytest

from services.errors import ConfigurationError, InvalidRequest
from services.faults.armed import ArmedFaults
from services.faults.plan import Action, FaultPlan
from services.telemetry.clock import ManualClock
from services.transfer.faults import with_faults
from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.memory import KVMemory, allocate
from services.transfer.transport import (
    BlockPair,
    NoticeArrived,
    PeerConnected,
    PeerLost,
    PushDone,
    PushFailed,
    PushId,
    TransferEvent,
)

NUM_BLOCKS, BLOCK_BYTES = 4, 64
NOTICE = b"the notice"


class Side:
    def __init__(self, fabric: InProcessFabric, agent: str) -> None:
        self.memory = allocate(NUM_BLOCKS + 1, BLOCK_BYTES)
        self.memory.view[:] = (agent.encode() * 99)[:1] * self.memory.num_bytes
        self.clock = ManualClock()
        self.signals: list[signal.Signals] = []
        self.events_at_signal: list[TransferEvent] = []
        self.faults = ArmedFaults(FaultPlan(), signal_process=self.signals.append)
        inner = InProcessTransport(agent=agent, fingerprint="layout", memory=self.memory, fabric=fabric)
        self.transport = with_faults(inner, self.faults, self.memory, self.clock)

    def plan(self, step: str, action: str, **more: Any) -> None:
        line = {"step": f"transfer.{step}", "action": action, **more}
        self.faults.plan = FaultPlan.model_validate({"faults": [line]})

    def poll(self) -> list[TransferEvent]:
        return list(self.transport.poll())


@pytest.fixture
def sides() -> Any:
    with ExitStack() as stack:
        fabric = InProcessFabric()
        pair = Side(fabric, "here"), Side(fabric, "there")
        for side in pair:
            stack.enter_context(closing(side.transport))
        yield pair


def connect(here: Side, there: Side) -> None:
    here.transport.connect(there.transport.endpoint())
    assert here.poll() == [PeerConnected("there")]


def push(here: Side) -> PushId:
    return here.transport.push("there", [BlockPair(0, 3), BlockPair(1, 2)], NOTICE)


def push_to_its_end(here: Side) -> None:
    number = push(here)
    assert here.poll() == [PushDone(number)]


def differing_bits(here: Side, there: Side) -> int:
    pairs = zip(bytes(here.memory.block(0)), bytes(there.memory.block(3)), strict=True)
    others = zip(bytes(here.memory.block(1)), bytes(there.memory.block(2)), strict=True)
    return sum((ours ^ theirs).bit_count() for ours, theirs in [*pairs, *others])


def test_without_faults_nothing_is_decorated() -> None:
    memory = allocate(NUM_BLOCKS, BLOCK_BYTES)
    inner = InProcessTransport(agent="a", fingerprint="layout", memory=memory, fabric=InProcessFabric())
    with closing(inner):
        assert with_faults(inner, None, memory, ManualClock()) is inner


def test_a_connection_that_is_lost_is_never_answered(sides: tuple[Side, Side]) -> None:
    here, there = sides
    here.plan("connect", "drop")
    here.transport.connect(there.transport.endpoint())
    assert here.poll() == []
    connect(here, there)


def test_a_late_connection_is_made_later_or_fails_then(sides: tuple[Side, Side]) -> None:
    here, there = sides
    here.plan("connect", "stall", times=2)
    endpoint = there.transport.endpoint()
    here.transport.connect(endpoint)
    assert here.poll() == []
    here.clock.advance(30.0)
    assert here.poll() + here.poll() == [PeerConnected("there")]
    there.transport.close()
    here.transport.connect(endpoint)
    here.clock.advance(30.0)
    assert [type(event) for event in here.poll() + here.poll()] in ([PeerLost], [PeerConnected])


@pytest.mark.parametrize("action", ["delay", "stall"])
def test_a_push_can_be_late(sides: tuple[Side, Side], action: str) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.posted", action, seconds=2.0)
    number = push(here)
    assert (here.poll(), there.poll()) == ([], [])
    here.clock.advance(2.0)
    assert here.poll() + here.poll() == [PushDone(number)]
    assert there.poll() == [NoticeArrived("here", NOTICE)]
    assert differing_bits(here, there) == 0


def test_a_lost_push_fails_and_writes_nothing(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.posted", "drop")
    push(here)
    assert [type(event) for event in here.poll()] == [PushFailed]
    assert there.poll() == []
    assert there.memory.block(3)[0] == ord("t")


def test_a_corrupted_push_differs_in_one_bit_and_the_sender_keeps_its_own(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.posted", "corrupt")
    number = push(here)
    assert here.poll() == [PushDone(number)]
    assert there.poll() == [NoticeArrived("here", NOTICE)]
    assert differing_bits(here, there) == 1
    assert bytes(here.memory.block(0)) == b"h" * BLOCK_BYTES


def test_the_end_of_a_push_can_be_late_lost_or_told_wrongly(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.done", "delay")
    number = push(here)
    assert here.poll() == []
    here.clock.advance(0.05)
    assert here.poll() == [PushDone(number)]
    here.faults = ArmedFaults(FaultPlan())
    for action, expected in (("drop", []), ("corrupt", [PushFailed])):
        plan_again(sides, "push.done", action)
        push(here)
        assert [type(event) for event in here.poll()] == expected
    assert [type(event) for event in there.poll()] == [NoticeArrived] * 3


def plan_again(sides: tuple[Side, Side], step: str, action: str) -> None:
    """Plan for every occurrence: the count goes on."""
    sides[0].transport._faults.plan = FaultPlan.model_validate(  # type: ignore[attr-defined]
        {"faults": [{"step": f"transfer.{step}", "action": action, "times": 99}]}
    )


@pytest.mark.parametrize(("action", "num_notices"), [("drop", 0), ("duplicate", 2)])
def test_a_notice_can_be_lost_or_come_twice(sides: tuple[Side, Side], action: str, num_notices: int) -> None:
    here, there = sides
    connect(here, there)
    there.plan("notice.received", action)
    push_to_its_end(here)
    assert there.poll() == [NoticeArrived("here", NOTICE)] * num_notices


def test_a_notice_can_be_late_or_differ_in_one_bit(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    there.plan("notice.received", "delay")
    push_to_its_end(here)
    assert there.poll() == []
    there.clock.advance(0.05)
    assert there.poll() == [NoticeArrived("here", NOTICE)]
    there.plan("notice.received", "corrupt", nth=2)
    push_to_its_end(here)
    (event,) = there.poll()
    assert isinstance(event, NoticeArrived)
    assert sum((a ^ b).bit_count() for a, b in zip(event.notice, NOTICE, strict=True)) == 1
    assert there.faults.injected == {Action.DELAY: 1, Action.CORRUPT: 1}


def test_who_is_killed_at_a_post_has_posted(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.posted", "kill")
    number = push(here)
    assert here.signals == [signal.SIGKILL]
    assert here.poll() == [PushDone(number)]
    assert there.poll() == [NoticeArrived("here", NOTICE)]


def test_two_blocks_of_a_push_can_change_places(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.memory.block(1)[:] = b"2" * BLOCK_BYTES
    here.plan("push.posted", "swap")
    push_to_its_end(here)
    assert bytes(there.memory.block(3)) == bytes(here.memory.block(1))
    assert bytes(there.memory.block(2)) == bytes(here.memory.block(0))


def test_one_push_is_corrupted_at_a_time(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.posted", "corrupt", times=3)
    for block in (0, 1):
        here.transport.push("there", [BlockPair(2, block)], NOTICE)
    assert [type(event) for event in here.poll()] == [PushDone] * 2
    ours = bytes(here.memory.block(2))
    assert [bytes(there.memory.block(block)) == ours for block in (0, 1)] == [False, True]
    push_to_its_end(here)
    assert differing_bits(here, there) == 1


def test_memory_out_of_reach_of_the_cpu_cannot_be_corrupted() -> None:
    memory = KVMemory(1 << 30, NUM_BLOCKS, BLOCK_BYTES, memoryview(b""), device="cuda:0")
    inner = InProcessTransport(agent="a", fingerprint="layout", memory=memory, fabric=InProcessFabric())
    with closing(inner), pytest.raises(ConfigurationError):
        with_faults(inner, ArmedFaults(FaultPlan()), memory, ManualClock())


def test_a_refused_push_is_refused_as_before(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    with pytest.raises(InvalidRequest):
        here.transport.push("there", [BlockPair(0, 999)], NOTICE)


def test_a_held_push_that_is_refused_in_the_end_fails(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.posted", "stall", times=2)
    refused = here.transport.push("there", [BlockPair(0, 999)], NOTICE)
    orphan = push(here)
    there.transport.close()
    here.clock.advance(30.0)
    failures = [event for _ in range(2) for event in here.poll() if isinstance(event, PushFailed)]
    assert sorted(failure.push for failure in failures) == [refused, orphan]


def test_closing_forgets_what_is_held(sides: tuple[Side, Side]) -> None:
    here, there = sides
    connect(here, there)
    here.plan("push.posted", "stall")
    push(here)
    here.transport.close()
    here.clock.advance(30.0)
    assert here.poll() == []
