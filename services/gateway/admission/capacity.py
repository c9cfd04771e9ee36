"""How many sequences the workers of a pool run at once, as they published it."""

from collections.abc import Sequence
from typing import Protocol

from services.cluster.registry import Member, Role


class Members(Protocol):
    """Who belongs to the cluster, as far as this gateway knows."""

    def members(self) -> Sequence[Member]:
        """Return the members last seen."""


class Capacity(Protocol):
    """Says how much the workers can take."""

    def num_sequences(self, pool: str) -> int:
        """Return how many sequences the decode workers of ``pool`` run at once; 0 if that is not known."""


class MemberCapacity:
    """Sums up what members tell. A batch that is never larger keeps the time between tokens as it is."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def num_sequences(self, pool: str) -> int:
        """Return the sum over the decode workers of ``pool`` that take new work; 0 if one of them does not tell."""
        told = [
            member.max_sequences
            for member in self._members.members()
            if member.role is Role.DECODE and member.fingerprint == pool and not member.draining
        ]
        return sum(told) if all(told) else 0
