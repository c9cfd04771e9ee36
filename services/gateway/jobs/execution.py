"""Works on a held job until it ends, waits for its client, or is lost to another gateway."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.errors import (
    DeadlineExceeded,
    LeaseLost,
    ObjectNotFound,
    Overloaded,
    PeerError,
    StateUnavailable,
    TandemError,
    Unavailable,
)
from services.gateway.jobs.events import PAUSES
from services.gateway.jobs.held import HeldJob
from services.gateway.store.kinds import Kind
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0

_log = get_logger(__name__)


@dataclass(frozen=True)
class Expired:
    """The time of the job is over."""


@dataclass(frozen=True)
class Cancelled:
    """Somebody cancelled the job."""


@dataclass(frozen=True)
class Failed:
    """The job cannot go on."""

    error: TandemError


Ending = Expired | Cancelled | Failed
"""Why a job ends before it is complete."""


class Work(Protocol):
    """What a kind of job does with one that is held here."""

    @property
    def held(self) -> HeldJob:
        """The job."""

    async def resume(self) -> None:
        """Read how far the job has come; called once, before all else."""

    async def advance(self) -> None:
        """Take the job to its next status; raise what prevents it, and be called again.

        Raises:
            TandemError: it cannot be done now, or not at all.
        """

    async def end(self, ending: Ending, *, is_patient: bool = True) -> None:
        """End the job wherever it stands."""


@dataclass(frozen=True)
class JobKind:
    """A kind of job, and how to work on one."""

    kind: Kind
    work: Callable[[HeldJob], Work]


class Execution:
    """The work on one job; ``run`` it once."""

    def __init__(self, work: Work, clock: Clock, patience_s: float) -> None:
        """``patience_s`` bounds the wait for workers that fail or are gone, not that for busy ones."""
        self.work = work
        self._clock = clock
        self._patience_s = patience_s
        self._pause_s = _FIRST_PAUSE_S
        self._failing_since_s: float | None = None
        self._last_event = 0

    @property
    def held(self) -> HeldJob:
        """The job."""
        return self.work.held

    async def run(self) -> None:
        """Work until nothing is left to do here."""
        try:
            await self.work.resume()
            if self.held.body["status"] in PAUSES:
                await self._leave_waiting()
            while self.held.body["status"] not in PAUSES:
                await self._step()
        except (LeaseLost, ObjectNotFound, StateUnavailable) as error:  # others go on with it, or nobody does
            _log.event("job.left", job=self.held.ref.id, reason=error.message)

    async def _leave_waiting(self) -> None:
        """Give a job that waits for its client back, unless its time is over."""
        if self.held.is_overdue:
            await self.work.end(Expired())
        else:
            await self.held.renew()

    async def _step(self) -> None:
        try:
            if self.held.is_overdue:
                await self.work.end(Expired())
            else:
                await self.work.advance()
        except DeadlineExceeded as error:
            await self._fail(error)
        except (LeaseLost, ObjectNotFound):
            raise
        except TandemError as error:
            if isinstance(error, StateUnavailable) and self.held.is_overdue:
                raise
            if not isinstance(error, (Overloaded, Unavailable, PeerError)) or not await self._waited(error):
                await self._fail(error)

    async def _fail(self, error: TandemError) -> None:
        if self.held.is_overdue:
            await self.work.end(Expired())
            return
        _log.warning("job.failed", job=self.held.ref.id, code=error.code, reason=error.message)
        await self.work.end(Failed(error))

    async def _waited(self, error: TandemError) -> bool:
        """Let some time pass for workers to come back or have room; return whether it is worth another attempt."""
        now_s = self._clock.now()
        if self._failing_since_s is None or self.held.last_event > self._last_event:  # it came further meanwhile
            self._failing_since_s, self._pause_s, self._last_event = now_s, _FIRST_PAUSE_S, self.held.last_event
        if isinstance(error, Overloaded):  # nothing fails: it is the turn of others
            self._failing_since_s = now_s
        elif now_s - self._failing_since_s >= self._patience_s:
            return False
        await self._clock.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
        return True
