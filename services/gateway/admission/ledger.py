"""Limits of the whole cluster, lent to gateways in shares.

A gateway tells for each limit how much it uses and how much it wants, and is lent a share for the time of a
lease. Everybody gets what he wants as long as it is enough for all; else shares are max-min fair (Bertsekas and
Gallager: "Data Networks", section 6.5.2), and what nobody wants is split evenly, so that a burst finds room
without asking. A share that another gateway holds is not lent twice: it comes free when its holder tells that
he uses less, or when his lease ends.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.telemetry.clock import Clock

LEASE_S = 10.0


@dataclass(frozen=True)
class Ask:
    """What one gateway tells about one limit."""

    total: int
    """The limit, as this gateway knows it."""
    in_use: int
    wanted: int
    """In use or waiting."""


@dataclass(frozen=True)
class Grant:
    """What it is lent."""

    share: int
    num_holders: int
    """Gateways that take part in this limit, itself included."""


class ShareLedger(Protocol):
    """Keeps who holds how much of each limit."""

    async def exchange(self, holder: str, asks: Mapping[str, Ask]) -> Mapping[str, Grant]:
        """Replace what ``holder`` holds of the limits named, under a new lease.

        Raises:
            StateUnavailable: the ledger cannot be reached.
        """

    async def leave(self, holder: str, names: Collection[str]) -> None:
        """Give back everything that ``holder`` has of the limits named.

        Raises:
            StateUnavailable: the ledger cannot be reached.
        """


@dataclass(frozen=True)
class _Holding:
    held: int
    wanted: int
    ends_s: float


class MemoryShareLedger:
    """A ledger in this process: for tests, with ``RedisShareLedger`` as the real one."""

    def __init__(self, clock: Clock, lease_s: float = LEASE_S) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._holdings: dict[str, dict[str, _Holding]] = {}

    async def exchange(self, holder: str, asks: Mapping[str, Ask]) -> Mapping[str, Grant]:
        """Replace what ``holder`` holds of the limits named, under a new lease."""
        return {name: self._exchange(holder, name, ask) for name, ask in asks.items()}

    async def leave(self, holder: str, names: Collection[str]) -> None:
        """Give back everything that ``holder`` has of the limits named."""
        for name in names:
            self._holdings.get(name, {}).pop(holder, None)

    def _exchange(self, holder: str, name: str, ask: Ask) -> Grant:
        now_s = self._clock.now()
        others = {
            other: holding
            for other, holding in self._holdings.get(name, {}).items()
            if other != holder and holding.ends_s > now_s
        }
        wishes = {**{other: holding.wanted for other, holding in others.items()}, holder: ask.wanted}
        free = ask.total - sum(holding.held for holding in others.values())
        share = max(0, min(_fair_share(ask.total, wishes, holder), free))
        held = max(share, min(ask.in_use, ask.total))
        self._holdings[name] = {**others, holder: _Holding(held, ask.wanted, now_s + self._lease_s)}
        return Grant(share, len(wishes))


def _fair_share(total: int, wishes: Mapping[str, int], holder: str) -> int:
    """Return the max-min fair part of ``holder`` and an even part of what nobody wants."""
    left, given = total, 0
    for index, (wish, name) in enumerate(sorted((wish, name) for name, wish in wishes.items())):
        part = min(wish, left // (len(wishes) - index))
        left -= part
        if name == holder:
            given = part
    return given + left // len(wishes)
