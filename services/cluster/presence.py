"""Keeps one worker in the cluster: joins, renews, joins again after the store lost it, leaves."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from services.cluster.background import Background, Outage
from services.cluster.cards import check_card_of
from services.cluster.registry import Member, MemberLoad, Registry
from services.errors import DeadlineExceeded, NotFound, StateUnavailable
from services.kv.card import ModelCard
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

RENEWALS_PER_LEASE = 5
JITTER = 0.2
"""Renewals come after 0.8 to 1.2 of their interval, so that members do not beat in step."""

_log = get_logger(__name__)


class Presence:
    """Publishes ``member`` with its present load until closed; ``async with`` or ``start`` and ``close``.

    ``load`` is called on the event loop at every renewal and must not fail.
    """

    def __init__(
        self,
        registry: Registry,
        member: Member,
        card: ModelCard,
        *,
        load: Callable[[], MemberLoad],
        clock: Clock,
        lease_s: float = 15.0,
    ) -> None:
        check_card_of(member, card)
        self._registry = registry
        self._member = member
        self._card = card
        self._load = load
        self._clock = clock
        self._interval_s = lease_s / RENEWALS_PER_LEASE
        self._is_open = False
        self._has_lease = False
        self._joined = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._outage = Outage(member.member_id, _log)
        self._task = Background(f"presence of {member.member_id}", _log, clock)

    @property
    def is_joined(self) -> bool:
        """Whether the store took the member at the last try."""
        return self._joined.is_set()

    def start(self) -> None:
        """Start joining, in the background."""
        self._is_open = True
        self._task.start(self._run)

    async def wait_joined(self, timeout_s: float) -> None:
        """Wait until the store took the member.

        Raises:
            DeadlineExceeded: it did not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._joined.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"The cluster was not joined within {timeout_s} s.") from error

    async def drain(self) -> None:
        """Publish at once that the member takes no new work; again at the next renewal if the store is away."""
        self._member = replace(self._member, draining=True)
        if self._is_open:
            await self._publish()

    async def close(self) -> None:
        """Stop renewing and leave; a store that is away forgets the member by itself. Idempotent."""
        await self._task.close()
        if self._is_open:
            self._is_open = False
            await self._leave()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> None:
        while True:
            await self._publish()
            await self._clock.sleep(self._interval_s * random.uniform(1 - JITTER, 1 + JITTER))

    async def _publish(self) -> None:
        async with self._publishing:
            try:
                await self._renew_or_join(replace(self._member, load=self._load()))
            except StateUnavailable as error:
                self._joined.clear()
                self._outage.failed(error)
            else:
                self._joined.set()
                self._outage.succeeded()

    async def _renew_or_join(self, member: Member) -> None:
        if self._has_lease:
            try:
                return await self._registry.renew(member)
            except NotFound:
                self._has_lease = False
                _log.warning("member.lost", member=member.member_id)
        await self._registry.join(member, self._card)
        self._has_lease = True
        _log.event("member.joined", member=member.member_id, role=member.role.value, address=member.address)

    async def _leave(self) -> None:
        self._has_lease = False
        self._joined.clear()
        try:
            await self._registry.leave(self._member.member_id)
            _log.event("member.left", member=self._member.member_id)
        except StateUnavailable as error:
            _log.warning("member.not_withdrawn", member=self._member.member_id, reason=error.message)
