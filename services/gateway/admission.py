"""Admission: a bounded number of requests and tokens runs, a bounded number waits, the rest is told to come back."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from services.errors import Overloaded
from services.telemetry.clock import Clock

_MIN_RETRY_S = 1.0
_MAX_RETRY_S = 60.0  # OpenAI's clients give up at once above 120
_SMOOTHING = 0.1


@dataclass(frozen=True)
class AdmissionLimits:
    """How much may run and wait."""

    max_requests: int
    max_tokens: int
    max_waiting: int
    max_wait_s: float


class Admission(Protocol):
    """Says when a request may begin."""

    def admitted(self, project: str, num_tokens: int) -> AbstractAsyncContextManager[None]:
        """Wait for a turn, hold it for the block."""


@dataclass(eq=False)
class _Waiter:
    num_tokens: int
    turn: "asyncio.Future[None]"


class FifoAdmission:
    """First come, first served, over all projects."""

    def __init__(self, limits: AdmissionLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._num_requests = 0
        self._num_tokens = 0
        self._waiting: deque[_Waiter] = deque()
        self._service_s = _MIN_RETRY_S

    @property
    def num_running(self) -> int:
        """Requests that have their turn."""
        return self._num_requests

    @property
    def num_waiting(self) -> int:
        """Requests that wait for it."""
        return len(self._waiting)

    @asynccontextmanager
    async def admitted(self, project: str, num_tokens: int) -> AsyncIterator[None]:
        """Wait for a turn and hold it for the block; ``num_tokens`` are the prompt and the output asked for.

        Raises:
            Overloaded: too many wait already, or the turn did not come in time.
        """
        num_tokens = min(num_tokens, self._limits.max_tokens)  # a request larger than the limit runs alone
        await self._take(num_tokens)
        started_s = self._clock.now()
        try:
            yield
        finally:
            self._service_s += _SMOOTHING * (self._clock.now() - started_s - self._service_s)
            self._give_back(num_tokens)

    async def _take(self, num_tokens: int) -> None:
        if not self._waiting and self._fits(num_tokens):
            return self._hold(num_tokens)
        if len(self._waiting) >= self._limits.max_waiting:
            raise Overloaded("Too many requests are waiting.", retry_after_s=self._retry_after_s())
        waiter = _Waiter(num_tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._limits.max_wait_s):
                await waiter.turn
        except (TimeoutError, asyncio.CancelledError) as error:
            self._withdraw(waiter)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"No turn came within {self._limits.max_wait_s:g} s.", retry_after_s=self._retry_after_s()
                ) from error
            raise

    def _withdraw(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            self._wake()
        elif waiter.turn.done() and not waiter.turn.cancelled():  # its turn came while it was giving up
            self._give_back(waiter.num_tokens)

    def _fits(self, num_tokens: int) -> bool:
        return (
            self._num_requests < self._limits.max_requests and self._num_tokens + num_tokens <= self._limits.max_tokens
        )

    def _hold(self, num_tokens: int) -> None:
        self._num_requests += 1
        self._num_tokens += num_tokens

    def _give_back(self, num_tokens: int) -> None:
        self._num_requests -= 1
        self._num_tokens -= num_tokens
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0].num_tokens):
            waiter = self._waiting.popleft()
            if not waiter.turn.done():
                self._hold(waiter.num_tokens)
                waiter.turn.set_result(None)

    def _retry_after_s(self) -> float:
        turns = (len(self._waiting) + 1) / self._limits.max_requests
        return min(max(turns * self._service_s, _MIN_RETRY_S), _MAX_RETRY_S)
