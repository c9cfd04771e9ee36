"""Keeps the timeline of each answer, whichever way it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.errors import StateUnavailable
from services.gateway.exchange import Exchange
from services.gateway.timeline import TimelineStore
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


class TimelineRecorder:
    """Writes timelines to a store; a store that is away costs the timeline, not the answer."""

    def __init__(self, store: TimelineStore) -> None:
        self._store = store

    @asynccontextmanager
    async def recording(self, exchange: Exchange) -> AsyncIterator[None]:
        """Keep the timeline of ``exchange`` when the block ends."""
        try:
            yield
        finally:
            try:
                await self._store.put(exchange.timeline.record())
            except StateUnavailable as error:
                _log.warning("timeline.lost", request_id=exchange.request_id, reason=error.message)
