"""Keeps the timeline of each answer, whichever way it ends, without letting the answer wait for the store."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from services.cluster.background import Background
from services.errors import StateUnavailable
from services.gateway.answering.timeline import TimelineStore
from services.gateway.web.exchange import Exchange, token_in
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger
from services.telemetry.timeline import TimelineRecord

MAX_PENDING = 1024
"""Timelines that may wait to be written; further ones are lost."""

_log = get_logger(__name__)


class TimelineRecorder:
    """Writes timelines to a store in the background, and reads them from memory until they are there.

    ``async with``: leaving it writes what still waits, within ``close_timeout_s``. A store that is away
    costs timelines, told to ``on_lost``.
    """

    def __init__(
        self, store: TimelineStore, clock: Clock, *, close_timeout_s: float, on_lost: Callable[[], None]
    ) -> None:
        self._store = store
        self._close_timeout_s = close_timeout_s
        self._on_lost = on_lost
        self._pending: dict[tuple[str, str], TimelineRecord] = {}
        self._has_more = asyncio.Event()
        self._writing = Background("timelines", _log, clock)

    @contextmanager
    def recording(self, exchange: Exchange) -> Iterator[None]:
        """Keep the timeline of ``exchange`` when the block ends."""
        try:
            yield
        finally:
            self._keep(exchange.project, exchange.token, exchange.timeline.record())

    async def find(self, project: str, any_id: str) -> dict[str, Any]:
        """Return the timeline of a request of ``project``, by its id or the id of its answer.

        Raises:
            NotFound: no such request of this project, or too long ago.
            StateUnavailable: it is not in memory and the store cannot be reached.
        """
        pending = self._pending.get((project, token_in(any_id)))
        return await self._store.get(project, any_id) if pending is None else pending.to_dict()

    async def __aenter__(self) -> Self:
        self._writing.start(self._write)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._writing.close()
        try:
            async with asyncio.timeout(self._close_timeout_s):
                await self._write_pending()
        except TimeoutError:
            for record in self._pending.values():
                self._lose(record, "not written before the end")

    def _keep(self, project: str, token: str, record: TimelineRecord) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._lose(record, "too many wait to be written")
            return
        self._pending[project, token] = record
        self._has_more.set()

    async def _write(self) -> None:
        while True:
            await self._has_more.wait()
            self._has_more.clear()
            await self._write_pending()

    async def _write_pending(self) -> None:
        while self._pending:
            key, record = next(iter(self._pending.items()))
            (error,) = await asyncio.gather(self._store.put(record), return_exceptions=True)
            if isinstance(error, StateUnavailable):
                self._lose(record, error.message)
            elif error is not None:  # a defect costs this one, and not those behind it
                _log.failure("timeline.defect", error, request_id=record.request_id)
                self._lose(record, "a defect")
            del self._pending[key]

    def _lose(self, record: TimelineRecord, reason: str) -> None:
        self._on_lost()
        _log.warning("timeline.lost", request_id=record.request_id, reason=reason)
