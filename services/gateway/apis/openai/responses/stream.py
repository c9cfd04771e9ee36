"""The events of a response as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson

from services.errors import TandemError
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.jobs.events import LogEntry
from services.gateway.web.errors import body_of
from services.gateway.web.stream import EventStream


class ResponseStream:
    """One stream; events are counted from 0, and the log counts from 1."""

    def __init__(self, entries: AsyncGenerator[LogEntry, None]) -> None:
        self._entries = entries
        self._next_number = 0

    def reply(self, services: OpenAIServices) -> EventStream:
        """Return the answer to a request."""
        limits = services.limits
        return EventStream(
            self._chunks(),
            silent_start_s=limits.keep_alive_s,
            keep_alive_s=limits.keep_alive_s,
            send_timeout_s=limits.send_timeout_s,
            last_words=self._last_words,
        )

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._entries) as entries:
            async for entry in entries:
                self._next_number = entry.number
                numbered = b'%s,"sequence_number":%d}' % (entry.data[:-1], entry.number - 1)
                yield _sse(entry.name.encode(), numbered)

    def _last_words(self, error: TandemError) -> bytes:
        """Return the end of a stream that failed on the way."""
        told = {name: body_of(error)["error"][name] for name in ("code", "message", "param")}
        return _sse(b"error", orjson.dumps({"type": "error", **told, "sequence_number": self._next_number}))


def _sse(name: bytes, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name, data)
