"""One background task with an owner: started once, cancelled and awaited on close, never lost silently."""

import asyncio
from collections.abc import Callable, Collection, Coroutine

from services.errors import StateUnavailable
from services.telemetry.logs import EventLogger

CANCEL_AGAIN_S = 0.5


class Background:
    """Runs one coroutine beside its owner."""

    def __init__(self, name: str, log: EventLogger) -> None:
        self._name = name
        self._log = log
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the coroutine was started and has not ended."""
        return self._task is not None and not self._task.done()

    def start(self, run: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run the coroutine; does nothing while one runs."""
        if not self.is_running:
            self._task = asyncio.create_task(run(), name=self._name)
            self._task.add_done_callback(self._report)

    async def close(self) -> None:
        """Cancel the coroutine and wait for its end; idempotent. A failure was logged when it happened."""
        task, self._task = self._task, None
        if task is not None:
            await end_all([task])

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.failure("background.failed", error, task=self._name)


async def end_all(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel ``tasks``, and those that join them meanwhile, until all have ended.

    A client library may turn a cancellation that meets its own failure into that failure, so that a loop would go on,
    and a step may take no cancellation: whoever has not ended is cancelled again.
    """
    while running := [task for task in tasks if not task.done()]:
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
