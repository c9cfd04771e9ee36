"""A transport whose steps meet what a fault plan says: connect, push.posted, push.done, notice.received.

connect ──> late, lost                                             ──> the decorated transport
push    ──> late, failed, corrupted, swapped; the process stopped  ──> the decorated transport
poll    <── ends late, lost, misreported; notices those and twice  <── the decorated transport
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.errors import ConfigurationError, PeerError, PeerGone, TandemError
from services.faults.armed import ArmedFaults
from services.faults.plan import Action, Fault
from services.telemetry.clock import Clock
from services.transfer.memory import KVMemory
from services.transfer.transport import (
    BlockPair,
    Endpoint,
    NoticeArrived,
    PeerLost,
    PushDone,
    PushFailed,
    PushId,
    TransferEvent,
    Transport,
)

_LATER = frozenset({Action.DELAY, Action.STALL})
_LOSSY = frozenset({*_LATER, Action.DROP, Action.CORRUPT})


def with_faults(transport: Transport, faults: ArmedFaults | None, memory: KVMemory, clock: Clock) -> Transport:
    """Return the transport decorated; as it is without faults. The last block of ``memory`` is the decorator's own.

    Raises:
        ConfigurationError: the CPU cannot address ``memory``, so that no bit of it can be flipped.
    """
    if faults is None:
        return transport
    if not memory.view.nbytes:
        raise ConfigurationError("Blocks can be corrupted only in memory that the CPU addresses.")
    return FaultyTransport(transport, faults, memory, clock)


class FaultyTransport:
    """Decorates a transport; driven, like it, by one thread."""

    def __init__(self, inner: Transport, faults: ArmedFaults, memory: KVMemory, clock: Clock) -> None:
        self._inner = inner
        self._faults = faults
        self._memory = memory
        self._clock = clock
        self._num_pushes = 0
        self._posted: dict[PushId, PushId] = {}
        """Our number of each push by that of the decorated transport."""
        self._corrupted: PushId | None = None
        """Which push reads the last block of memory: there is one, so one is corrupted at a time."""
        self._late: list[tuple[float, _Late]] = []
        self._events: list[TransferEvent] = []

    def endpoint(self) -> Endpoint:
        """Return the endpoint of the decorated transport."""
        return self._inner.endpoint()

    def connect(self, peer: Endpoint) -> None:
        """Connect: at once, later or never."""
        fault = self._faults.at("transfer.connect", {*_LATER, Action.DROP})
        if fault is None:
            self._inner.connect(peer)
        elif fault.action in _LATER:
            self._hold(fault, peer)

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        """Post a push, or do to it what the plan says; a process that dies here has posted it."""
        fault = self._faults.decide("transfer.push.posted", {*_LOSSY, Action.SWAP})
        self._num_pushes += 1
        push = _Push(PushId(self._num_pushes), agent, tuple(blocks), notice)
        if fault is None:
            self._post(push)
        elif fault.action in _LATER:
            self._hold(fault, push)
        elif fault.action is Action.DROP:
            self._events.append(PushFailed(push.number, PeerGone("A fault was injected: the push failed.")))
        else:
            self._post(push, fault)
            self._faults.signalled(fault)
        return push.number

    def poll(self) -> Sequence[TransferEvent]:
        """Make progress and return what happened, or what the plan makes of it."""
        now_s = self._clock.now()
        due = [late for due_s, late in self._late if due_s <= now_s]
        self._late = [(due_s, late) for due_s, late in self._late if due_s > now_s]
        for late in due:
            self._catch_up(late)
        events, self._events = self._events, []
        for event in self._inner.poll():
            events += self._met(event)
        return events

    def close(self) -> None:
        """Close the decorated transport and forget what is late."""
        self._inner.close()
        self._late.clear()
        self._posted.clear()
        self._events.clear()

    def _hold(self, fault: Fault, late: "_Late") -> None:
        self._late.append((self._clock.now() + fault.seconds, late))

    def _catch_up(self, late: "_Late") -> None:
        """Let happen what was held."""
        match late:
            case Endpoint():
                if (failure := _failure(lambda: self._inner.connect(late))) is not None:
                    self._events.append(PeerLost(late.agent, failure))
            case _Push():
                if (failure := _failure(lambda: self._post(late))) is not None:
                    self._events.append(PushFailed(late.number, failure))
            case _:
                self._events.append(late)

    def _post(self, push: "_Push", fault: Fault | None = None) -> None:
        blocks: Sequence[BlockPair] = push.blocks
        corrupts = fault is not None and fault.action is Action.CORRUPT and self._corrupted is None
        if fault is not None and corrupts:
            blocks = self._with_a_flipped_bit(blocks, fault)
        elif fault is not None and fault.action is Action.SWAP and len(blocks) > 1:
            blocks = _with_two_swapped(blocks)
        self._posted[self._inner.push(push.agent, blocks, push.notice)] = push.number
        if corrupts:
            self._corrupted = push.number

    def _met(self, event: TransferEvent) -> list[TransferEvent]:
        match event:
            case PushDone():
                return self._done(PushDone(self._ended(event.push)))
            case PushFailed():
                return [PushFailed(self._ended(event.push), event.error)]
            case NoticeArrived():
                return self._noticed(event)
        return [event]

    def _ended(self, inner: PushId) -> PushId:
        push = self._posted.pop(inner)
        if push == self._corrupted:
            self._corrupted = None
        return push

    def _done(self, event: PushDone) -> list[TransferEvent]:
        fault = self._faults.at("transfer.push.done", _LOSSY)
        if fault is None:
            return [event]
        if fault.action is Action.CORRUPT:
            return [PushFailed(event.push, PeerGone("A fault was injected: the push was done and is called failed."))]
        return self._later_or_never(fault, event)

    def _noticed(self, event: NoticeArrived) -> list[TransferEvent]:
        fault = self._faults.at("transfer.notice.received", {*_LOSSY, Action.DUPLICATE})
        if fault is None:
            return [event]
        if fault.action is Action.DUPLICATE:
            return [event, event]
        if fault.action is Action.CORRUPT:
            changed = bytearray(event.notice)
            _flip_a_bit(changed, fault)
            return [NoticeArrived(event.agent, bytes(changed))]
        return self._later_or_never(fault, event)

    def _later_or_never(self, fault: Fault, event: PushDone | NoticeArrived) -> list[TransferEvent]:
        if fault.action in _LATER:
            self._hold(fault, event)
        return []

    def _with_a_flipped_bit(self, blocks: Sequence[BlockPair], fault: Fault) -> list[BlockPair]:
        """Return the pairs with one of them read from a copy that differs; the sender keeps its own block."""
        victim, scratch = random.Random(f"block of {fault}").randrange(len(blocks)), self._memory.num_blocks - 1
        copy = self._memory.block(scratch)
        copy[:] = self._memory.block(blocks[victim].local)
        _flip_a_bit(copy, fault)
        changed = list(blocks)
        changed[victim] = BlockPair(scratch, blocks[victim].remote)
        return changed


@dataclass(frozen=True)
class _Push:
    number: PushId
    agent: str
    blocks: tuple[BlockPair, ...]
    notice: bytes


_Late = Endpoint | _Push | PushDone | NoticeArrived


def _failure(action: Callable[[], None]) -> PeerError | None:
    """Do what is late; return why it cannot be done any more."""
    try:
        action()
    except TandemError as error:
        return error if isinstance(error, PeerError) else PeerError(error.message)
    return None


def _with_two_swapped(blocks: Sequence[BlockPair]) -> list[BlockPair]:
    first, *between, last = blocks
    return [BlockPair(first.local, last.remote), *between, BlockPair(last.local, first.remote)]


def _flip_a_bit(data: bytearray | memoryview, fault: Fault) -> None:
    randomness = random.Random(f"bit of {fault}")
    data[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)
