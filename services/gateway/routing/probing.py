"""Asks suspects by gRPC health how they are: who answers that it serves is trusted again."""

import asyncio
from typing import Protocol

from services.cluster.registry import Member
from services.gateway.routing.router import Members
from services.gateway.routing.suspects import Suspects
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


class HealthClient(Protocol):
    """Knows whether a worker serves."""

    async def is_serving(self, address: str, timeout_s: float) -> bool:
        """Return whether the process at ``address`` answers in time that it serves."""


class Probing:
    """One task for as long as a gateway lives. A new failure within the pause keeps a member from being asked."""

    def __init__(
        self, suspects: Suspects, members: Members, health: HealthClient, clock: Clock, *, pause_s: float
    ) -> None:
        self._suspects = suspects
        self._members = members
        self._health = health
        self._clock = clock
        self._pause_s = pause_s

    async def follow(self) -> None:
        """Ask for ever."""
        while True:
            await self._clock.sleep(self._pause_s)
            await self.ask()

    async def ask(self) -> None:
        """Ask every suspect once whose pause is over; forget those that are no members any more."""
        members = {member.member_id: member for member in self._members.members()}
        self._suspects.keep_only(members)
        due = self._suspects.due()
        await asyncio.gather(*(self._ask(member) for name, member in members.items() if name in due))

    async def _ask(self, member: Member) -> None:
        if await self._health.is_serving(member.address, self._pause_s):
            self._suspects.clear(member.member_id)
            _log.event("suspect.answered", member=member.member_id)
        else:
            self._suspects.mark(member.member_id)
            _log.event("suspect.silent", member=member.member_id)
