"""Server-sent events: one answer as a stream that starts when the answer does and says when it fails."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NoReturn

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from services.errors import Cancelled, TandemError
from services.gateway.web.connection import while_connected
from services.gateway.web.exchange import request_id
from services.gateway.web.watchdog import Watchdog
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole stream.

        Raises:
            TandemError: the answer failed before anything was sent.
        """
        scope["state"][LAST_WORDS] = self._last_words
        sender = _Sender(send, self._head(), self._send_timeout_s)
        try:
            await while_connected(receive, self._send_all(sender), self._break_silence(sender))
        except Cancelled as error:
            _log.event("stream.abandoned", request_id=request_id(scope["state"]["token"]), reason=error.message)
        finally:
            sender.close()

    async def _send_all(self, sender: "_Sender") -> None:
        try:
            await self._send_chunks(sender)
        finally:
            sender.has_ended = True  # also if nothing was sent: no comment shall begin a stream that failed
        await sender.end()

    async def _send_chunks(self, sender: "_Sender") -> None:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    await sender.send(chunk)
        except Cancelled:  # nobody reads any more
            raise
        except TandemError as error:
            if not sender.has_started:
                raise
            _log.warning("stream.failed", code=error.code, reason=error.message)
            await sender.send(self._last_words(error))

    async def _break_silence(self, sender: "_Sender") -> NoReturn:
        while True:
            longest_s = self._keep_alive_s if sender.has_started else self._silent_start_s
            silent_s = sender.silent_s
            if silent_s >= longest_s:
                await sender.send(self._keep_alive)
            else:
                # Meanwhile the stream may start, from when on less silence is long.
                await asyncio.sleep(min(longest_s - silent_s, self._keep_alive_s))

    def _head(self) -> Message:
        return {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}


class _Sender:
    """The way to the client: one thing at a time, each within its deadline, the head before all others."""

    def __init__(self, send: Send, head: Message, timeout_s: float) -> None:
        self._send = send
        self._head = head
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._watchdog = Watchdog()
        self._turn = asyncio.Lock()
        self._sent_s = self._loop.time()
        self.has_started = False
        self.has_ended = False
        """Whether nothing comes any more, except what ends the stream."""

    @property
    def silent_s(self) -> float:
        """For how long nothing was said: not while something is on its way, nor after the end."""
        return 0.0 if self._turn.locked() or self.has_ended else self._loop.time() - self._sent_s

    async def send(self, body: bytes) -> None:
        """Send a part.

        Raises:
            Cancelled: the client did not take it in time.
        """
        await self._say({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """End the stream, as ``send`` does.

        Raises:
            Cancelled: the client did not take what was left in time.
        """
        await self._say({"type": "http.response.body", "body": b"", "more_body": False})

    def close(self) -> None:
        """Give the timer back."""
        self._watchdog.close()

    async def _say(self, message: Message) -> None:
        try:
            async with self._turn:
                with self._watchdog.within(self._timeout_s):
                    if not self.has_started:
                        self.has_started = True
                        await self._send(self._head)
                    await self._send(message)
                self._sent_s = self._loop.time()
        except TimeoutError as error:
            raise Cancelled(f"The client read nothing for {self._timeout_s:g} s.") from error
