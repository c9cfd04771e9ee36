"""Keeps this gateway's leases, and takes jobs whose gateway is gone or whose time is over, on any gateway."""

import asyncio
from random import Random

from services.cluster.background import Outage
from services.errors import StateUnavailable, TandemError
from services.gateway.drain import Drain
from services.gateway.jobs.held import LeaseTerms
from services.gateway.jobs.service import Jobs
from services.gateway.jobs.storage import JobStorage
from services.telemetry.logs import get_logger

MAX_TAKEN = 32
"""Jobs of one project that are taken in one sweep, so that gateways share them."""
_RENEWALS = 4
"""How often a lease is renewed before it would end."""

_log = get_logger(__name__)


class Sweeper:
    """Looks after jobs; when the gateway leaves it offers them to the others at once."""

    def __init__(self, jobs: Jobs, storage: JobStorage, terms: LeaseTerms, drain: Drain, random: Random) -> None:
        self._jobs = jobs
        self._storage = storage
        self._terms = terms
        self._drain = drain
        self._random = random
        self._outage = Outage("jobs", _log)

    async def follow(self, interval_s: float) -> None:
        """Renew and sweep about every ``interval_s`` until the gateway leaves."""
        while True:
            await self._tick()
            if self._terms.is_leaving:
                return
            try:
                async with asyncio.timeout(interval_s * self._random.uniform(0.5, 1.0)):
                    await self._drain.wait_leaving()
            except TimeoutError:
                continue

    async def _tick(self) -> None:
        try:
            if self._drain.is_leaving:
                await self.leave()
            else:
                await self.renew()
                await self.sweep()
        except StateUnavailable as error:
            self._outage.failed(error)
        else:
            self._outage.succeeded()

    async def renew(self) -> None:
        """Extend the leases that are getting old.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        oldest_ms = self._terms.now_ms - 1e3 * self._terms.lease_s / _RENEWALS
        for key, held in self._jobs.held().items():
            if held.renewed_ms <= oldest_ms:
                await self._jobs.renew(key)

    async def sweep(self) -> None:
        """Take all jobs that are due.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        for project, job in await self._storage.due(self._terms.now_ms, MAX_TAKEN):
            try:
                await self._jobs.work_on_due(project, job)
            except StateUnavailable:
                raise
            except TandemError as error:  # the others are not to wait for it
                _log.warning("job.not_taken", job=job.id, code=error.code, reason=error.message)

    async def leave(self) -> None:
        """Offer all jobs to other gateways; work on each goes on until one takes it.

        Raises:
            StateUnavailable: Redis cannot be reached.
        """
        self._terms.is_leaving = True
        for key in self._jobs.held():
            await self._jobs.renew(key)
