"""One background task with an owner: begun again after a defect, cancelled and awaited on close."""

import asyncio
from collections.abc import Callable, Collection, Coroutine

from services.errors import StateUnavailable
from services.telemetry.clock import Clock
from services.telemetry.logs import EventLogger

CANCEL_AGAIN_S = 0.5
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0


class Background:
    """Runs one coroutine beside its owner.

    A coroutine that fails is logged, which counts as a defect, and begun again: what it follows must not stand still
    for ever, and what the process does besides is too good to be ended for it. The pause before that doubles with
    each failure up to ``MAX_PAUSE_S``, and is short again after a run that lasted longer.
    """

    def __init__(self, name: str, log: EventLogger, clock: Clock) -> None:
        self._name = name
        self._log = log
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_running(self) -> bool:
        """Whether the coroutine was started and has not come to its end."""
        return bool(self._tasks)

    def start(self, run: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run the coroutine; does nothing while one runs."""
        if not self._tasks:
            self._begin(self._keep_running(run), f"keep {self._name} running")

    async def close(self) -> None:
        """Cancel the coroutine and wait for its end; idempotent."""
        await end_all(self._tasks)

    async def _keep_running(self, run: Callable[[], Coroutine[None, None, None]]) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = self._clock.now()
            running = self._begin(run(), self._name)
            await asyncio.wait([running])
            if running.cancelled() or (error := running.exception()) is None:
                return
            if self._clock.now() - began_s > MAX_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            self._log.failure("background.failed", error, task=self._name, again_after_s=pause_s)
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _begin(self, run: Coroutine[None, None, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(run, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def end_all(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel ``tasks``, and those that join them meanwhile, until all have ended.

    A client library may turn a cancellation that meets its own failure into that failure, so that a loop would go on,
    and a step may take no cancellation: whoever has not ended is cancelled again.
    """
    while running := [task for task in tuple(tasks) if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=CANCEL_AGAIN_S)


class Outage:
    """Says once that the store is away, and once that it is back."""

    def __init__(self, user: str, log: EventLogger) -> None:
        self.is_on = False
        self._user = user
        self._log = log

    def failed(self, error: StateUnavailable) -> None:
        """Note a failed call."""
        if not self.is_on:
            self.is_on = True
            self._log.warning("registry.away", user=self._user, reason=error.message)

    def succeeded(self) -> None:
        """Note a call that went well."""
        if self.is_on:
            self.is_on = False
            self._log.event("registry.back", user=self._user)
