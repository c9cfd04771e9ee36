"""A transport whose steps meet what a fault plan says: connect, push.posted, push.done, notice.received."""

import random
from collections.abc import Sequence

from services.errors import PeerError, PeerGone, TandemError
from services.faults.armed import ArmedFaults
from services.faults.plan import Action, Fault
from services.telemetry.clock import Clock
from services.transfer.faults import FaultyTransport, NoticeFault, PushFault, Scratch
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
_ABLE = frozenset({*_LATER, Action.DROP, Action.CORRUPT})
_PUSH_FAULTS = {
    Action.DELAY: PushFault.DELAY,
    Action.STALL: PushFault.DELAY,
    Action.DROP: PushFault.FAIL,
    Action.CORRUPT: PushFault.CORRUPT,
    Action.SWAP: PushFault.SWAP,
}


def with_faults(transport: Transport, faults: ArmedFaults | None, memory: KVMemory, clock: Clock) -> Transport:
    """Return the transport decorated; as it is without faults. The last block of ``memory`` is the decorator's own.

    Raises:
        ConfigurationError: the CPU cannot address ``memory``, so that no bit of it can be flipped.
    """
    if faults is None:
        return transport
    return SteppedTransport(transport, faults, clock, Scratch(memory, memory.num_blocks - 1))


class SteppedTransport:
    """Decorates a transport; driven, like it, by one thread."""

    def __init__(self, inner: Transport, faults: ArmedFaults, clock: Clock, scratch: Scratch) -> None:
        self._next = _NextPush()
        self._pushes = FaultyTransport(inner, self._next, clock=clock, scratch=scratch)
        self._faults = faults
        self._clock = clock
        self._late: list[tuple[float, Endpoint | TransferEvent]] = []

    def endpoint(self) -> Endpoint:
        """Return the endpoint of the decorated transport."""
        return self._pushes.endpoint()

    def connect(self, peer: Endpoint) -> None:
        """Connect: at once, later or never."""
        fault = self._faults.at("transfer.connect", {*_LATER, Action.DROP})
        if fault is None:
            self._pushes.connect(peer)
        elif fault.action in _LATER:
            self._late.append((self._clock.now() + fault.seconds, peer))

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        """Post a push, or do to it what the plan says; a process that dies here has posted it."""
        fault = self._faults.decide("transfer.push.posted", _PUSH_FAULTS)
        self._next.fault = _PUSH_FAULTS.get(fault.action) if fault is not None else None
        if fault is not None and fault.action in _LATER:
            self._pushes.delay_s = fault.seconds
        push = self._pushes.push(agent, blocks, notice)
        if fault is not None:
            self._faults.signalled(fault)
        return push

    def poll(self) -> Sequence[TransferEvent]:
        """Make progress and return what happened, or what the plan makes of it."""
        events = [met for event in self._pushes.poll() for met in self._met(event)]
        now_s = self._clock.now()
        due = [late for due_s, late in self._late if due_s <= now_s]
        self._late = [(due_s, late) for due_s, late in self._late if due_s > now_s]
        for late in due:
            events += self._connected(late) if isinstance(late, Endpoint) else [late]
        return events

    def close(self) -> None:
        """Close the decorated transport and forget what is late."""
        self._pushes.close()
        self._late.clear()

    def _connected(self, peer: Endpoint) -> list[TransferEvent]:
        try:
            self._pushes.connect(peer)
        except TandemError as error:
            failure = error if isinstance(error, PeerError) else PeerError(error.message)
            return [PeerLost(peer.agent, failure)]
        return []

    def _met(self, event: TransferEvent) -> list[TransferEvent]:
        match event:
            case PushDone():
                return self._done(event)
            case NoticeArrived():
                return self._noticed(event)
        return [event]

    def _done(self, event: PushDone) -> list[TransferEvent]:
        fault = self._faults.at("transfer.push.done", _ABLE)
        if fault is None:
            return [event]
        if fault.action is Action.CORRUPT:
            return [PushFailed(event.push, PeerGone("A fault was injected: the push was done and is called failed."))]
        return self._later_or_never(fault, event)

    def _noticed(self, event: NoticeArrived) -> list[TransferEvent]:
        fault = self._faults.at("transfer.notice.received", {*_ABLE, Action.DUPLICATE})
        if fault is None:
            return [event]
        if fault.action is Action.DUPLICATE:
            return [event, event]
        if fault.action is Action.CORRUPT:
            return [NoticeArrived(event.agent, _with_a_flipped_bit(event.notice, fault))]
        return self._later_or_never(fault, event)

    def _later_or_never(self, fault: Fault, event: TransferEvent) -> list[TransferEvent]:
        if fault.action in _LATER:
            self._late.append((self._clock.now() + fault.seconds, event))
        return []


class _NextPush:
    """The fault plan of the pushes inside: what was decided for the next one."""

    def __init__(self) -> None:
        self.fault: PushFault | None = None

    def of_push(self, number: int) -> PushFault | None:
        """Return what was decided."""
        return self.fault

    def of_notice(self, number: int) -> NoticeFault | None:
        """Return nothing: notices are met outside."""
        return None


def _with_a_flipped_bit(data: bytes, fault: Fault) -> bytes:
    randomness, changed = random.Random(f"bit of {fault}"), bytearray(data)
    changed[randomness.randrange(len(changed))] ^= 1 << randomness.randrange(8)
    return bytes(changed)
