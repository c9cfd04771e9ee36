"""Server-sent events: one answer as a stream that starts when the answer does and says when it fails."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.errors import Cancelled, TandemError
from services.gateway.connection import while_connected
from services.gateway.exchange import request_id
from services.gateway.merge import Pump
from services.telemetry.logs import get_logger

LAST_WORDS = "last_words"
"""Key in the request's state: how a stream that has begun tells a failure that only the outermost layer sees."""
KEEP_ALIVE = b": keep-alive\n\n"

_log = get_logger(__name__)


class EventStream(Response):
    """Sends ``chunks`` as they come; the client's leaving closes them.

    Nothing is sent before the first chunk, so that an early failure keeps its own status; after
    ``silent_start_s`` without one the stream starts anyway, with a comment, and so after ``keep_alive_s``
    later on. A later failure is told by ``last_words``. A client that does not take a chunk within
    ``send_timeout_s`` counts as gone.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        silent_start_s: float,
        keep_alive_s: float,
        send_timeout_s: float,
        last_words: Callable[[TandemError], bytes],
        keep_alive: bytes = KEEP_ALIVE,
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._chunks = chunks
        self._silent_start_s = silent_start_s
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s
        self._last_words = last_words
        self._keep_alive = keep_alive
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole stream.

        Raises:
            TandemError: the answer failed before anything was sent.
        """
        scope["state"][LAST_WORDS] = self._last_words
        try:
            await while_connected(receive, self._send_all(send))
        except Cancelled as error:
            _log.event("stream.abandoned", request_id=request_id(scope["state"]["token"]), reason=error.message)

    async def _send_all(self, send: Send) -> None:
        try:
            async with Pump([self._chunks]) as pump:
                while (chunk := await self._next(pump)) is not None:
                    await self._send(send, chunk)
        except Cancelled:  # nobody reads any more
            raise
        except TandemError as error:
            if not self._has_started:
                raise
            _log.warning("stream.failed", code=error.code, reason=error.message)
            await self._send(send, self._last_words(error))
        await self._send(send, b"", is_last=True)

    async def _next(self, pump: Pump[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(self._keep_alive_s if self._has_started else self._silent_start_s):
                chunks = await pump.next()
        except TimeoutError:
            return self._keep_alive
        return None if chunks is None else b"".join(chunks)

    async def _send(self, send: Send, body: bytes, *, is_last: bool = False) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await self._start(send)
                await send({"type": "http.response.body", "body": body, "more_body": not is_last})
        except TimeoutError as error:
            raise Cancelled(f"The client read nothing for {self._send_timeout_s:g} s.") from error

    async def _start(self, send: Send) -> None:
        if not self._has_started:
            self._has_started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
