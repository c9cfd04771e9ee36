"""uvicorn's HTTP protocol with the bounds that it lacks: how long a request's head may be, and how long it may take.

A head that is too long is 431, one that does not arrive in time 408, what is no HTTP 400, each in the shape of the
OpenAI API. With the head complete the application has deadlines of its own; what still comes of a body that was
answered has as long as a head.
"""

import asyncio
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.web.errors import error_body


class HeadTooLarge(Exception):
    """Raised out of the parser's callbacks, which turn it into one of the parser's own errors."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. Subclasses set the bounds: ``bounded`` makes them."""

    max_head_bytes: int
    """Request line, headers and trailers of one request."""
    head_timeout_s: float

    _num_head_bytes = 0
    _is_reading_head = True
    _has_begun = False
    _is_too_large = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that is too large is refused, also one that has only begun."""
        if self._is_reading_head:
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_reading_head and self._num_head_bytes > self.max_head_bytes:
            self._refuse_large_head()
        elif self.cycle is None or self.cycle.response_complete:
            self._arm()

    def on_message_begin(self) -> None:
        """Count anew."""
        super().on_message_begin()
        self._is_reading_head = self._has_begun = True
        self._counted = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here: from now on the application has its own deadlines."""
        self._is_reading_head = self._has_begun = False
        self._num_head_bytes = 0
        self._disarm()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser refused."""
        if self._is_too_large:
            self._refuse_large_head()
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "The request is not valid HTTP.", "invalid_http")

    def _count(self, num_bytes: int) -> None:
        self._counted += num_bytes
        if self._counted > self.max_head_bytes:
            self._is_too_large = True
            raise HeadTooLarge

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_timeout_s, self._on_deadline)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._has_begun:
            message = f"The head of the request did not arrive within {self.head_timeout_s:g} s."
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, message, "request_timeout")
        else:
            # The rest of a request that was answered long ago, or a connection opened in advance, whose next request
            # must not find an answer that is not its own.
            self.transport.close()

    def _refuse_large_head(self) -> None:
        message = f"The headers of the request are larger than {self.max_head_bytes} bytes."
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, "headers_too_large")

    def _refuse(self, status: HTTPStatus, message: str, code: str) -> None:
        """Answer and hang up; an answer that is on its way is cut off, since nothing may follow within it."""
        if self.cycle is None or self.cycle.response_complete:
            body = orjson.dumps(error_body(message, code=code))
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def bounded(*, max_head_bytes: int, head_timeout_s: float) -> type[asyncio.Protocol]:
    """Return a protocol class with these bounds."""
    bounds: dict[str, Any] = {"max_head_bytes": max_head_bytes, "head_timeout_s": head_timeout_s}
    return type("HttpProtocol", (BoundedHttpProtocol,), bounds)
