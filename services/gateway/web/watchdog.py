"""A deadline for each of many waits, at the price of one timer."""

import asyncio
from types import TracebackType
from typing import Self


class Watchdog:
    """Bounds one wait of its task after the other, as ``asyncio.timeout`` bounds one.

    A timer for each wait costs more than the wait itself when what is waited for is about to come. This one is left
    running when a wait ends, and looks when it goes off how long the wait that is on then may still take.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        """Who waits, while somebody does."""
        self._ends_s = 0.0
        self._num_cancelling = 0
        self._is_over = False

    def within(self, timeout_s: float) -> Self:
        """Return the context of one wait; leaving it raises TimeoutError if the wait took longer."""
        self._ends_s = self._loop.time() + timeout_s
        return self

    def close(self) -> None:
        """Give the timer back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task, self._num_cancelling, self._is_over = task, task.cancelling(), False
        if self._timer is None or self._timer.when() > self._ends_s:
            self._arm()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        # As asyncio.timeout has it: a cancellation that is not ours goes on.
        if self._is_over and task.uncancel() <= self._num_cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _arm(self) -> None:
        self.close()
        self._timer = self._loop.call_at(self._ends_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._ends_s:
            self._arm()
        else:
            self._is_over = True
            self._task.cancel()
