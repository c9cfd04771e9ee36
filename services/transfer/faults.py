"""A transport that misbehaves on purpose: what a network, a peer or a memory may do to pushes and notices.

    push ──> delayed, stalled, failed, corrupted, its end misreported ──> the decorated transport
    poll <── notices delayed, dropped, duplicated                     <── the decorated transport

A plan says which push and which notice meets which fault, by number; a seeded plan is a pure function of the
seed and that number, so that a run can be repeated whatever else differs.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

from services.errors import ConfigurationError, PeerError, PeerGone, TandemError
from services.telemetry.clock import Clock
from services.transfer.memory import KVMemory
from services.transfer.transport import (
    BlockPair,
    Endpoint,
    NoticeArrived,
    PushDone,
    PushFailed,
    PushId,
    TransferEvent,
    Transport,
)

FaultT = TypeVar("FaultT")


class PushFault(Enum):
    """What can happen to a push at its sender."""

    DELAY = "delay"
    """It is posted later."""
    STALL = "stall"
    """It stays outstanding until ``resume``; then it is posted."""
    FAIL = "fail"
    """It is never posted, and fails."""
    MISREPORT = "misreport"
    """It arrives, and yet it fails."""
    CORRUPT = "corrupt"
    """One bit of one block is flipped on the way."""
    SWAP = "swap"
    """The first and the last of its blocks change places."""


class NoticeFault(Enum):
    """What can happen to a notice at its receiver; the bytes it speaks of are there."""

    DELAY = "delay"
    DROP = "drop"
    DUPLICATE = "duplicate"


class FaultPlan(Protocol):
    """Says which push and which notice of a transport, counted from 0, meets a fault."""

    def of_push(self, number: int) -> PushFault | None:
        """Return what happens to the push with this number."""

    def of_notice(self, number: int) -> NoticeFault | None:
        """Return what happens to the notice with this number."""


@dataclass(frozen=True)
class ScriptedFaults:
    """Faults by number."""

    pushes: Mapping[int, PushFault] = field(default_factory=dict)
    notices: Mapping[int, NoticeFault] = field(default_factory=dict)

    def of_push(self, number: int) -> PushFault | None:
        """Return what the script says."""
        return self.pushes.get(number)

    def of_notice(self, number: int) -> NoticeFault | None:
        """Return what the script says."""
        return self.notices.get(number)


@dataclass(frozen=True)
class SeededFaults:
    """Faults drawn with the given shares, each in [0, 1], their sum at most 1 for pushes and for notices."""

    seed: int
    pushes: Mapping[PushFault, float] = field(default_factory=dict)
    notices: Mapping[NoticeFault, float] = field(default_factory=dict)

    def of_push(self, number: int) -> PushFault | None:
        """Return what was drawn."""
        return _drawn(self.pushes, f"{self.seed} push {number}")

    def of_notice(self, number: int) -> NoticeFault | None:
        """Return what was drawn."""
        return _drawn(self.notices, f"{self.seed} notice {number}")


@dataclass(frozen=True)
class Scratch:
    """A block of the sender's memory that its engine does not use: what is corrupted is copied there first."""

    memory: KVMemory
    block: int

    def __post_init__(self) -> None:
        if not self.memory.view.nbytes:
            raise ConfigurationError("Blocks can be corrupted only in memory that the CPU addresses.")


class FaultyTransport:
    """Decorates a transport; like it, driven by one thread, except for ``plan``, ``injected`` and ``resume``."""

    def __init__(
        self, inner: Transport, plan: FaultPlan, *, clock: Clock, delay_s: float = 0.05, scratch: Scratch | None = None
    ) -> None:
        self.plan = plan
        self.injected: Counter[PushFault | NoticeFault] = Counter()
        self._inner = inner
        self.delay_s = delay_s
        self._clock = clock
        self._scratch = scratch
        self._num_pushes = 0
        self._num_notices = 0
        self._num_resumed = 0
        self._held: list[_Held] = []
        self._late: list[tuple[float, NoticeArrived]] = []
        self._posted: dict[PushId, _Posted] = {}
        self._events: list[TransferEvent] = []

    def endpoint(self) -> Endpoint:
        """Return the endpoint of the decorated transport."""
        return self._inner.endpoint()

    def connect(self, peer: Endpoint) -> None:
        """Connect the decorated transport."""
        self._inner.connect(peer)

    def resume(self) -> None:
        """Let every push go on that is stalled now (from any thread)."""
        self._num_resumed = self._num_pushes

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        """Post a push, or do to it what the plan says; ``Transport.push`` says the rest."""
        number, self._num_pushes = self._num_pushes, self._num_pushes + 1
        fault, push = self.plan.of_push(number), PushId(number)
        if (fault is PushFault.CORRUPT and not self._can_corrupt()) or (fault is PushFault.SWAP and len(blocks) < 2):
            fault = None
        if fault is not None:
            self.injected[fault] += 1
        if fault is PushFault.FAIL:
            self._events.append(PushFailed(push, PeerGone("A fault was injected: the push failed.")))
        elif fault is PushFault.DELAY:
            due_s = self._clock.now() + self.delay_s
            self._held.append(_Held(push, agent, tuple(blocks), notice, lambda: self._clock.now() >= due_s))
        elif fault is PushFault.STALL:
            self._held.append(_Held(push, agent, tuple(blocks), notice, lambda: self._num_resumed > number))
        else:
            if fault is PushFault.CORRUPT:
                blocks = self._with_a_flipped_bit(blocks, number)
            elif fault is PushFault.SWAP:
                blocks = _with_two_swapped(blocks)
            self._posted[self._inner.push(agent, blocks, notice)] = _Posted(push, fault)
        return push

    def poll(self) -> Sequence[TransferEvent]:
        """Make progress and return what happened, or what the plan makes of it."""
        self._post_what_is_due()
        events, self._events = self._events, []
        for event in self._inner.poll():
            match event:
                case PushDone() | PushFailed():
                    events.append(self._end(event))
                case NoticeArrived():
                    events += self._noticed(event)
                case _:
                    events.append(event)
        now_s = self._clock.now()
        events += [event for due_s, event in self._late if due_s <= now_s]
        self._late = [(due_s, event) for due_s, event in self._late if due_s > now_s]
        return events

    def close(self) -> None:
        """Close the decorated transport and forget what is held."""
        self._inner.close()
        self._held.clear()
        self._late.clear()
        self._posted.clear()
        self._events.clear()

    def _post_what_is_due(self) -> None:
        due = [held for held in self._held if held.is_due()]
        self._held = [held for held in self._held if held not in due]
        for held in due:
            try:
                self._posted[self._inner.push(held.agent, held.blocks, held.notice)] = _Posted(held.push, None)
            except TandemError as error:
                failure = error if isinstance(error, PeerError) else PeerError(error.message)
                self._events.append(PushFailed(held.push, failure))

    def _end(self, event: PushDone | PushFailed) -> TransferEvent:
        posted = self._posted.pop(event.push)
        if isinstance(event, PushFailed):
            return PushFailed(posted.push, event.error)
        if posted.fault is PushFault.MISREPORT:
            return PushFailed(posted.push, PeerGone("A fault was injected: the push was done and is called failed."))
        return PushDone(posted.push)

    def _noticed(self, event: NoticeArrived) -> list[TransferEvent]:
        number, self._num_notices = self._num_notices, self._num_notices + 1
        fault = self.plan.of_notice(number)
        if fault is None:
            return [event]
        self.injected[fault] += 1
        if fault is NoticeFault.DELAY:
            self._late.append((self._clock.now() + self.delay_s, event))
        return [event, event] if fault is NoticeFault.DUPLICATE else []

    def _can_corrupt(self) -> bool:
        """There is one scratch block, so one corrupted push at a time."""
        is_busy = any(posted.fault is PushFault.CORRUPT for posted in self._posted.values())
        return self._scratch is not None and not is_busy

    def _with_a_flipped_bit(self, blocks: Sequence[BlockPair], number: int) -> list[BlockPair]:
        assert self._scratch is not None
        randomness = random.Random(f"bit {number}")
        victim = randomness.randrange(len(blocks))
        copy = self._scratch.memory.block(self._scratch.block)
        copy[:] = self._scratch.memory.block(blocks[victim].local)
        copy[randomness.randrange(copy.nbytes)] ^= 1 << randomness.randrange(8)
        changed = list(blocks)
        changed[victim] = BlockPair(self._scratch.block, blocks[victim].remote)
        return changed


@dataclass(frozen=True)
class _Held:
    push: PushId
    agent: str
    blocks: tuple[BlockPair, ...]
    notice: bytes
    is_due: Callable[[], bool]


@dataclass(frozen=True)
class _Posted:
    push: PushId
    fault: PushFault | None


def _with_two_swapped(blocks: Sequence[BlockPair]) -> list[BlockPair]:
    first, *between, last = blocks
    return [BlockPair(first.local, last.remote), *between, BlockPair(last.local, first.remote)]


def _drawn(shares: Mapping[FaultT, float], key: str) -> FaultT | None:
    number = random.Random(key).random()
    for fault, share in shares.items():
        number -= share
        if number < 0:
            return fault
    return None
