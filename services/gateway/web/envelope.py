"""What every request gets, whatever serves it: an id, limits, headers, a count, and an answer in any case."""

from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import Draining, InternalError, Overloaded, PayloadTooLarge, TandemError
from services.gateway.drain import Drain
from services.gateway.web.exchange import new_token, request_id
from services.gateway.web.replies import error_reply
from services.gateway.web.stream import LAST_WORDS
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger
from services.telemetry.metrics import GatewayMetrics

API_VERSION = "2020-10-01"
_UNKNOWN_ROUTE = "unknown"
# Answered also while requests are refused.
_ALWAYS_OPEN = ("/livez", "/readyz", "/metrics")
# Statuses that come before the whole body.
_BODY_UNREAD = (408, 413)

_log = get_logger(__name__)


class Envelope:
    """ASGI middleware around the whole application, inside the server's own error page."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock,
        drain: Drain,
        metrics: GatewayMetrics,
        max_body_bytes: Callable[[Scope], int],
        max_open_requests: int,
    ) -> None:
        self._app = app
        self._clock = clock
        self._drain = drain
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._max_open_requests = max_open_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connections pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = new_token()
        scope["path"] = scope["path"].rstrip("/") or "/"
        scope.setdefault("state", {}).update(token=token, started_s=self._clock.now())
        reply = _Reply(send, self._headers(scope["state"]))
        with self._drain.open():
            try:
                max_bytes = self._max_body_bytes(scope)
                self._check(scope, max_bytes)
                await self._app(scope, _Limited(receive, max_bytes), reply)
            except Exception as error:
                await self._fail(scope, receive, reply, error)
        self._count(scope, reply)

    def _check(self, scope: Scope, max_body_bytes: int) -> None:
        if scope["path"] not in _ALWAYS_OPEN:
            self._check_room()
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > max_body_bytes:
            raise _too_large(max_body_bytes)

    def _check_room(self) -> None:
        if self._drain.is_closed:
            raise Draining("This gateway is leaving; try again.", retry_after_s=1.0)
        if self._drain.num_open > self._max_open_requests:
            self._metrics.admission_refusals.labels(reason="too_many_open").inc()
            raise Overloaded("Too many requests are open.", retry_after_s=1.0)

    async def _fail(self, scope: Scope, receive: Receive, reply: "_Reply", error: Exception) -> None:
        """Answer with ``error``; what is no error of ours on purpose is a defect and is logged as one."""
        if not isinstance(error, TandemError):
            name = request_id(scope["state"]["token"])
            _log.failure("request.failed", error, request_id=name)
            error = InternalError(f"The server had an error while processing your request ({name}).")
        last_words = scope["state"].get(LAST_WORDS)
        if not reply.has_started:
            self._metrics.refusals.labels(code=error.code).inc()
            await error_reply(error)(scope, receive, reply)
        elif last_words is not None:
            await reply({"type": "http.response.body", "body": last_words(error), "more_body": False})

    def _headers(self, state: MutableMapping[str, Any]) -> "_Headers":
        return _Headers(self._clock, self._drain, state)

    def _count(self, scope: Scope, reply: "_Reply") -> None:
        route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
        self._metrics.http_requests.labels(method=scope["method"], route=route, status=str(reply.status)).inc()


class _Headers:
    """The headers of every reply."""

    def __init__(self, clock: Clock, drain: Drain, state: MutableMapping[str, Any]) -> None:
        self._clock = clock
        self._drain = drain
        self._state = state

    def add_to(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = request_id(self._state["token"])
        headers["openai-version"] = API_VERSION
        headers["openai-processing-ms"] = str(round(1e3 * (self._clock.now() - self._state["started_s"])))
        if self._drain.is_closed or message["status"] in _BODY_UNREAD:  # the rest of the body is not worth reading
            headers["connection"] = "close"


class _Reply:
    """The ``send`` of one request."""

    def __init__(self, send: Send, headers: _Headers) -> None:
        self._send = send
        self._headers = headers
        self.status = 499  # what is counted when the client left before any answer
        self.has_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            self.status = message["status"]
            self._headers.add_to(message)
        await self._send(message)


class _Limited:
    """The ``receive`` of one request; a body without a declared length is counted as it comes."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._num_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {max_bytes} bytes.")
