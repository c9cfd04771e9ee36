"""Futures of an event loop that another thread settles."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from services.errors import PeerStalled

Result = TypeVar("Result")


class Waiter(Generic[Result]):
    """Waits on the loop that made it; ``resolve`` and ``fail`` may be called from any thread, the first one counts."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Result] = self._loop.create_future()

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody still wants the result."""
        return not self._future.done()

    def resolve(self, result: Result) -> None:
        """Hand over the result."""
        self._on_loop(lambda: self._future.set_result(result))

    def fail(self, error: BaseException) -> None:
        """Raise ``error`` where the result is awaited."""
        self._on_loop(lambda: self._future.set_exception(error))

    async def result(self, timeout_s: float, what: str) -> Result:
        """Wait for the result.

        Raises:
            PeerStalled: ``what`` did not happen within ``timeout_s``.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._future
        except TimeoutError as error:
            raise PeerStalled(f"{what} took longer than {timeout_s} s.") from error

    def _on_loop(self, settle: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(lambda: None if self._future.done() else settle())
        except RuntimeError:  # the loop is closed: nobody waits any more
            return
