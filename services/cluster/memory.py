"""The in-memory registry: a whole cluster in one process, for tests and simulations."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.cluster.cards import check_card_of, read_card
from services.cluster.registry import Member
from services.errors import NotFound, StateUnavailable
from services.kv.card import ModelCard
from services.telemetry.clock import Clock


@dataclass(frozen=True)
class _Lease:
    member: Member
    ends_at_s: float


class MemoryRegistry:
    """Same rules as ``RedisRegistry``; everybody who shares the object shares the cluster."""

    def __init__(self, clock: Clock, lease_s: float = 15.0) -> None:
        self.is_reachable = True
        """Set to False to play an outage: every call raises StateUnavailable."""
        self._clock = clock
        self._lease_s = lease_s
        self._leases: dict[str, _Lease] = {}
        self._cards: dict[str, str] = {}
        self._asked_to_leave: set[str] = set()

    async def join(self, member: Member, card: ModelCard) -> None:
        """Publish the card and the member."""
        check_card_of(member, card)
        self._reach()
        self._cards.setdefault(member.card_digest, card.to_json())
        self._lease(member)

    async def renew(self, member: Member) -> None:
        """Extend the lease, which must still run."""
        self._reach()
        if member.member_id not in self._live() or member.card_digest not in self._cards:
            raise NotFound(f"Member {member.member_id} has no lease to renew.")
        self._lease(member)

    async def leave(self, member_id: str) -> None:
        """Withdraw the member."""
        self._reach()
        self._leases.pop(member_id, None)

    async def members(self) -> Sequence[Member]:
        """Return everybody with a lease, in the order of their ids."""
        self._reach()
        return [lease.member for _, lease in sorted(self._live().items())]

    async def card(self, digest: str) -> ModelCard:
        """Return the card published under ``digest``."""
        self._reach()
        text = self._cards.get(digest)
        if text is None:
            raise NotFound(f"No model card has the digest {digest}.")
        return read_card(text.encode(), digest)

    async def ask_to_leave(self, member_id: str) -> None:
        """Leave a note."""
        self._reach()
        self._asked_to_leave.add(member_id)

    async def is_asked_to_leave(self, member_id: str) -> bool:
        """Return whether there is a note."""
        self._reach()
        return member_id in self._asked_to_leave

    def lose_data(self) -> None:
        """Forget everything, as a store does that restarts without its data."""
        self._asked_to_leave.clear()
        self._leases.clear()
        self._cards.clear()

    def put_card_text(self, digest: str, text: str) -> None:
        """Store any text under a digest, as a damaged store would."""
        self._cards[digest] = text

    def _lease(self, member: Member) -> None:
        self._leases = {**self._live(), member.member_id: _Lease(member, self._clock.now() + self._lease_s)}

    def _live(self) -> dict[str, _Lease]:
        now_s = self._clock.now()
        return {member_id: lease for member_id, lease in self._leases.items() if lease.ends_at_s > now_s}

    def _reach(self) -> None:
        if not self.is_reachable:
            raise StateUnavailable("The registry cannot be reached.")
