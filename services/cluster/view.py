"""What a process knows of the cluster: the last known members, also while the store is away."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from services.cluster.background import Background, Outage
from services.cluster.registry import Member, Registry
from services.errors import DeadlineExceeded, StateUnavailable
from services.kv.card import ModelCard
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

MAX_CACHED_CARDS = 16

_log = get_logger(__name__)


@dataclass(frozen=True)
class MembershipChange:
    """Who came and who went since the change before; a member with a new load or state is neither."""

    joined: tuple[Member, ...] = ()
    left: tuple[Member, ...] = ()


class MemberView:
    """Asks the registry every ``refresh_s``; ``async with`` or ``start`` and ``close``.

    While the store is away the last answer stands and ``is_stale`` is true. When it is back, members
    that it does not list are kept for ``grace_s``, time enough for the living to join again.
    """

    def __init__(self, registry: Registry, clock: Clock, refresh_s: float = 1.0, *, grace_s: float = 6.0) -> None:
        self._registry = registry
        self._clock = clock
        self._refresh_s = refresh_s
        self._grace_s = grace_s
        self._grace_ends_s = 0.0
        self._members: dict[str, Member] = {}
        self._listed: tuple[Member, ...] = ()
        self._unconfirmed: frozenset[str] = frozenset()
        self._cards: OrderedDict[str, ModelCard] = OrderedDict()
        self._fetching = asyncio.Lock()
        self._refreshed = asyncio.Condition()
        self._is_closed = False
        self._is_stale = True
        self._outage = Outage("member view", _log)
        self._task = Background("member view", _log, clock)

    @property
    def is_stale(self) -> bool:
        """Whether the registry did not answer at the last try, or was never asked."""
        return self._is_stale

    def members(self) -> Sequence[Member]:
        """Return the last known members, in the order of their ids; the same object until they are listed again."""
        return self._listed

    async def card(self, digest: str) -> ModelCard:
        """Return the card published under ``digest``; fetched once.

        Raises:
            NotFound: no such card.
            StateUnavailable: it was never fetched and the store cannot be reached.
            IntegrityError: the stored text does not have that digest.
        """
        if digest not in self._cards:
            async with self._fetching:
                await self._fetch(digest)
        self._cards.move_to_end(digest)
        return self._cards[digest]

    async def changes(self) -> AsyncGenerator[MembershipChange, None]:
        """Yield who came and went, the members known now first; ends when the view is closed.

        A slow reader gets several changes as one: nothing is queued.
        """
        known: Mapping[str, Member] = {}
        while not self._is_closed:
            current = self._members
            change = _change(known, current)
            known = current
            if change != MembershipChange():
                yield change
            await self._changed_since(current)

    async def wait_for(self, predicate: Callable[[Sequence[Member]], bool], timeout_s: float) -> Sequence[Member]:
        """Wait until ``predicate`` holds for the members, and return them.

        Raises:
            DeadlineExceeded: it did not within ``timeout_s``.
        """
        try:
            async with asyncio.timeout(timeout_s), self._refreshed:
                await self._refreshed.wait_for(lambda: predicate(self.members()))
                return self.members()
        except TimeoutError as error:
            raise DeadlineExceeded(f"The cluster did not become as wanted within {timeout_s} s.") from error

    async def refresh(self) -> None:
        """Ask the registry now; a store that is away leaves everything as it was, but stale."""
        try:
            listed = await self._registry.members()
        except StateUnavailable as error:
            self._is_stale = True
            self._unconfirmed = frozenset(self._members)
            self._outage.failed(error)
            return
        if self._outage.is_on:
            self._grace_ends_s = self._clock.now() + self._grace_s
        self._is_stale = False
        self._outage.succeeded()
        await self._replace(listed)

    def start(self) -> None:
        """Start refreshing, in the background."""
        self._task.start(self._run)

    async def close(self) -> None:
        """Stop refreshing and end all iterators; idempotent."""
        await self._task.close()
        self._is_closed = True
        async with self._refreshed:
            self._refreshed.notify_all()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> None:
        while True:
            await self.refresh()
            await self._clock.sleep(self._refresh_s)

    async def _fetch(self, digest: str) -> None:
        if digest in self._cards:  # fetched by the holder of the lock before us
            return
        self._cards[digest] = await self._registry.card(digest)
        if len(self._cards) > MAX_CACHED_CARDS:
            self._cards.popitem(last=False)

    async def _changed_since(self, known: Mapping[str, Member]) -> None:
        async with self._refreshed:
            await self._refreshed.wait_for(lambda: self._is_closed or self._members is not known)

    async def _replace(self, listed: Sequence[Member]) -> None:
        members = {member.member_id: member for member in listed}
        self._unconfirmed -= members.keys()
        if self._clock.now() >= self._grace_ends_s:
            self._unconfirmed = frozenset()
        members.update((member_id, self._members[member_id]) for member_id in self._unconfirmed)
        change = _change(self._members, members)
        for member in change.joined:
            _log.event("member.seen", member=member.member_id, role=member.role.value, address=member.address)
        for member in change.left:
            _log.event("member.gone", member=member.member_id, role=member.role.value)
        async with self._refreshed:
            self._members = dict(sorted(members.items()))
            self._listed = tuple(self._members.values())
            self._refreshed.notify_all()


async def tell_addresses(view: MemberView, keep_only: Callable[[Collection[str]], None]) -> None:
    """Call ``keep_only`` with the addresses of all members whenever one left; ends when the view is closed."""
    async for change in view.changes():
        if change.left:
            keep_only({member.address for member in view.members()})


def _change(before: Mapping[str, Member], after: Mapping[str, Member]) -> MembershipChange:
    return MembershipChange(
        joined=tuple(member for member_id, member in after.items() if member_id not in before),
        left=tuple(member for member_id, member in before.items() if member_id not in after),
    )
