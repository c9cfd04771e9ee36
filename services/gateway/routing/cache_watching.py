"""Follows the prefix caches of all workers, for routing."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

from services.cluster.background import Background
from services.cluster.registry import Member, Role
from services.cluster.view import MembershipChange
from services.errors import TandemError
from services.gateway.routing.prefixes import PrefixIndex
from services.rpc import tandem_pb2 as pb
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

RETRY_S = 5.0
_WITH_CACHE = (Role.PREFILL, Role.DECODE)
_log = get_logger(__name__)


class CacheClient(Protocol):
    """Hears what workers have cached."""

    def watch(self, member: Member) -> AsyncGenerator[pb.CacheEvent, None]:
        """Yield what ``member`` has, and then what changes; closing the generator ends the call.

        Raises:
            TandemError: the member cannot be heard, or not any more.
        """


class Membership(Protocol):
    """Tells who comes and goes."""

    def changes(self) -> AsyncIterator[MembershipChange]:
        """Yield who came and went."""


class CacheWatching:
    """One task per worker for as long as ``follow`` runs; what an unheard worker said before is forgotten."""

    def __init__(self, members: Membership, prefixes: PrefixIndex, client: CacheClient, clock: Clock) -> None:
        self._members = members
        self._prefixes = prefixes
        self._client = client
        self._clock = clock
        self._watching: dict[str, Background] = {}

    async def follow(self) -> None:
        """Watch whoever belongs to the cluster."""
        try:
            async for change in self._members.changes():
                for member in change.left:
                    await self._leave(member.member_id)
                for member in change.joined:
                    self._join(member)
        finally:
            for member_id in tuple(self._watching):
                await self._leave(member_id)

    def _join(self, member: Member) -> None:
        if member.role in _WITH_CACHE:
            self._watching[member.member_id] = watching = Background(f"cache of {member.member_id}", _log, self._clock)
            watching.start(lambda: self._watch(member))

    async def _leave(self, member_id: str) -> None:
        watching = self._watching.pop(member_id, None)
        if watching is not None:
            await watching.close()

    async def _watch(self, member: Member) -> None:
        while True:
            try:
                async with aclosing(self._client.watch(member)) as events:
                    async for event in events:
                        self._prefixes.update(member.member_id, added=event.added, removed=event.removed)
            except TandemError as error:
                _log.event("cache.unheard", member=member.member_id, code=error.code, reason=error.message)
            finally:
                self._prefixes.forget(member.member_id)
            await self._clock.sleep(RETRY_S)
