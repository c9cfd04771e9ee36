"""Reservations in order of arrival: whoever waits longest for KV blocks gets them first, within a deadline."""

import asyncio

from services.engine.output import Reservation
from services.engine.request import AttemptKey, NewRequest
from services.errors import Overloaded
from services.worker.node import Node

_RETRY_S = 0.02


class Reserving:
    """The queue before the KV pool of one decode worker; ``Node.require_place`` bounds it."""

    def __init__(self, node: Node, *, timeout_s: float) -> None:
        self._node = node
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()  # asyncio's lock wakes its waiters in order
        self.num_waiting = 0

    async def reserve(self, spec: NewRequest, attempt: AttemptKey) -> Reservation:
        """Reserve blocks for a whole prompt, waiting for them if necessary.

        Raises:
            Overloaded: no blocks became free in time.
        """
        self.num_waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s), self._turn:
                return await self._until_reserved(spec, attempt)
        except TimeoutError as error:
            raise Overloaded(f"No KV blocks became free within {self._timeout_s:g} s.", retry_after_s=1.0) from error
        finally:
            self.num_waiting -= 1

    async def _until_reserved(self, spec: NewRequest, attempt: AttemptKey) -> Reservation:
        while True:
            try:
                return await self._node.engine.call(lambda scheduler: scheduler.reserve(spec, attempt))
            except Overloaded:
                await self._node.clock.sleep(_RETRY_S)
