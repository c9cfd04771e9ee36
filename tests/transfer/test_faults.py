"""What the fault-injecting decorator does to pushes and notices, over the in-process transport."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing

import pytest

from services.errors import ConfigurationError, IncompatiblePeer, InvalidRequest, PeerGone
from services.telemetry.clock import ManualClock
from services.transfer.faults import (
    FaultPlan,
    FaultyTransport,
    NoticeFault,
    PushFault,
    Scratch,
    ScriptedFaults,
    SeededFaults,
)
from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.memory import KVMemory, allocate
from services.transfer.transport import (
    BlockPair,
    Endpoint,
    NoticeArrived,
    PeerConnected,
    PushDone,
    PushFailed,
    PushId,
    TransferEvent,
)

NUM_BLOCKS, BLOCK_BYTES, DELAY_S = 8, 64, 1.5
PAIRS = [BlockPair(0, 3), BlockPair(1, 2)]


class Side:
    """A decorated transport with its memory, whose last block is the scratch block."""

    def __init__(self, stack: ExitStack, fabric: InProcessFabric, agent: str) -> None:
        self.memory: KVMemory = allocate(NUM_BLOCKS + 1, BLOCK_BYTES)
        self.memory.view[:] = random.Random(agent).randbytes(self.memory.num_bytes)
        self.clock = ManualClock()
        inner = InProcessTransport(agent=agent, fingerprint="layout", memory=self.memory, fabric=fabric)
        self.transport = FaultyTransport(
            inner, ScriptedFaults(), clock=self.clock, delay_s=DELAY_S, scratch=Scratch(self.memory, NUM_BLOCKS)
        )
        stack.enter_context(closing(self.transport))

    def poll(self) -> list[TransferEvent]:
        return list(self.transport.poll())


class Pair:
    def __init__(self, stack: ExitStack) -> None:
        fabric = InProcessFabric()
        self.here, self.there = Side(stack, fabric, "here"), Side(stack, fabric, "there")
        self.here.transport.connect(self.there.transport.endpoint())
        assert self.here.poll() == [PeerConnected("there")]

    def push(self, notice: bytes = b"note", pairs: Sequence[BlockPair] = PAIRS) -> PushId:
        return self.here.transport.push("there", pairs, notice)

    def num_differing_bits(self, pairs: Sequence[BlockPair] = PAIRS) -> int:
        return sum(
            (ours ^ theirs).bit_count()
            for pair in pairs
            for ours, theirs in zip(
                self.here.memory.block(pair.local), self.there.memory.block(pair.remote), strict=True
            )
        )


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


def notices(events: Sequence[TransferEvent]) -> list[bytes]:
    return [event.notice for event in events if isinstance(event, NoticeArrived)]


def test_without_faults_nothing_changes(pair: Pair) -> None:
    push = pair.push()
    assert pair.here.poll() == [PushDone(push)]
    assert notices(pair.there.poll()) == [b"note"]
    assert pair.num_differing_bits() == 0
    assert not pair.here.transport.injected


def test_a_delayed_push_is_posted_when_its_time_has_come(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes={0: PushFault.DELAY})
    late, punctual = pair.push(b"late"), pair.push(b"punctual")
    assert pair.here.poll() == [PushDone(punctual)]
    pair.here.clock.advance(DELAY_S)
    assert pair.here.poll() == [PushDone(late)]
    assert notices(pair.there.poll()) == [b"punctual", b"late"]


def test_a_stalled_push_waits_for_resume(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes={0: PushFault.STALL, 1: PushFault.STALL})
    first = pair.push(b"first")
    pair.here.clock.advance(3600)
    assert pair.here.poll() == []
    pair.here.transport.resume()
    second = pair.push(b"second")
    assert pair.here.poll() == [PushDone(first)]
    pair.here.transport.resume()
    assert pair.here.poll() == [PushDone(second)]


def test_a_failed_push_is_never_posted(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes={0: PushFault.FAIL})
    before = bytes(pair.there.memory.view)
    push = pair.push()
    (event,) = pair.here.poll()
    assert isinstance(event, PushFailed) and event.push == push and isinstance(event.error, PeerGone)
    assert pair.there.poll() == [] and bytes(pair.there.memory.view) == before


def test_a_misreported_push_arrives(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes={0: PushFault.MISREPORT})
    push = pair.push()
    (event,) = pair.here.poll()
    assert isinstance(event, PushFailed) and event.push == push
    assert notices(pair.there.poll()) == [b"note"]
    assert pair.num_differing_bits() == 0


def test_corruption_flips_one_bit_on_the_way_and_none_at_the_sender(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes={0: PushFault.CORRUPT})
    before = bytes(pair.here.memory.view[: NUM_BLOCKS * BLOCK_BYTES])
    push = pair.push()
    assert pair.here.poll() == [PushDone(push)]
    assert pair.num_differing_bits() == 1
    assert bytes(pair.here.memory.view[: NUM_BLOCKS * BLOCK_BYTES]) == before


def test_one_push_is_corrupted_at_a_time(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes=dict.fromkeys(range(3), PushFault.CORRUPT))
    others = [BlockPair(4, 4)]
    pair.push()
    pair.push(pairs=others)
    pair.here.poll()
    assert (pair.num_differing_bits(), pair.num_differing_bits(others)) == (1, 0)
    pair.push(pairs=others)
    pair.here.poll()
    assert pair.num_differing_bits(others) == 1
    assert pair.here.transport.injected == {PushFault.CORRUPT: 2}


def test_without_a_scratch_block_nothing_is_corrupted(pair: Pair) -> None:
    plain = FaultyTransport(pair.here.transport, ScriptedFaults(pushes={0: PushFault.CORRUPT}), clock=pair.here.clock)
    plain.push("there", PAIRS, b"")
    plain.poll()
    assert pair.num_differing_bits() == 0
    assert not plain.injected


def test_memory_out_of_reach_of_the_cpu_cannot_be_scratch() -> None:
    memory = KVMemory(1 << 30, NUM_BLOCKS, BLOCK_BYTES, memoryview(b""), device="cuda:0")
    with pytest.raises(ConfigurationError):
        Scratch(memory, 0)


@pytest.mark.parametrize(
    ("fault", "at_once", "later"),
    [
        (NoticeFault.DROP, [], []),
        (NoticeFault.DUPLICATE, [b"note", b"note"], []),
        (NoticeFault.DELAY, [], [b"note"]),
    ],
)
def test_notices_are_dropped_duplicated_or_late(
    pair: Pair, fault: NoticeFault, at_once: list[bytes], later: list[bytes]
) -> None:
    pair.there.transport.plan = ScriptedFaults(notices={0: fault})
    pair.push()
    pair.here.poll()
    assert notices(pair.there.poll()) == at_once
    assert pair.num_differing_bits() == 0
    pair.there.clock.advance(DELAY_S)
    assert notices(pair.there.poll()) == later
    assert pair.there.transport.injected == {fault: 1}


def test_a_refused_push_is_refused_as_before(pair: Pair) -> None:
    with pytest.raises(InvalidRequest):
        pair.push(pairs=[BlockPair(0, 999)])
    with pytest.raises(IncompatiblePeer):
        pair.here.transport.connect(Endpoint("inproc", "there", "another layout", b""))


def test_a_held_push_that_is_refused_in_the_end_fails(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes={0: PushFault.STALL, 1: PushFault.STALL})
    refused = pair.push(pairs=[BlockPair(0, 999)])
    orphan = pair.push()
    pair.there.transport.close()
    pair.here.transport.resume()
    failures = [event for _ in range(2) for event in pair.here.poll() if isinstance(event, PushFailed)]
    assert sorted(failure.push for failure in failures) == [refused, orphan]


def test_closing_forgets_what_is_held(pair: Pair) -> None:
    pair.here.transport.plan = ScriptedFaults(pushes={0: PushFault.STALL, 1: PushFault.FAIL})
    pair.push()
    pair.push()
    pair.here.transport.close()
    pair.here.transport.resume()
    assert pair.here.poll() == []


def drawn(plan: FaultPlan, numbers: Sequence[int]) -> list[PushFault | None]:
    return [plan.of_push(number) for number in numbers]


def test_seeded_faults_depend_on_seed_and_number_alone() -> None:
    shares = {PushFault.FAIL: 0.25, PushFault.STALL: 0.25}
    plan = SeededFaults(7, pushes=shares)
    forwards, backwards = drawn(plan, range(400)), drawn(SeededFaults(7, pushes=shares), range(399, -1, -1))
    assert forwards == backwards[::-1]
    assert forwards != drawn(SeededFaults(8, pushes=shares), range(400))
    assert 60 < forwards.count(PushFault.FAIL) < 140 and 60 < forwards.count(PushFault.STALL) < 140
    assert {plan.of_notice(number) for number in range(100)} == {None}
