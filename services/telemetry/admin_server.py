"""The admin port of a worker: ``/livez``, ``/readyz`` and ``/metrics`` over plain HTTP/1.1.

One request per connection, GET and HEAD only; a client has ``REQUEST_TIMEOUT_S`` for everything and may
send ``MAX_HEADER_BYTES`` of header.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from services.errors import ConfigurationError
from services.telemetry.logs import get_logger

MAX_HEADER_BYTES = 8192
MAX_CONNECTIONS = 64
REQUEST_TIMEOUT_S = 5.0

_TEXT = "text/plain; charset=utf-8"
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Response:
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT

    @classmethod
    def of(cls, status: HTTPStatus) -> "_Response":
        return cls(status, f"{status.phrase}\n".encode())

    def encode(self, *, with_body: bool) -> bytes:
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            "Cache-Control: no-store\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (self.body if with_body else b"")


class AdminServer:
    """Answers on the admin port; made by ``serve_admin``."""

    def __init__(
        self,
        registry: CollectorRegistry,
        readiness: Callable[[], bool],
        liveness: Callable[[], bool],
        *,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self.port = 0
        """The port it listens on."""
        self._registry = registry
        self._readiness = readiness
        self._liveness = liveness
        self._request_timeout_s = request_timeout_s
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 lets the system choose.

        Raises:
            ConfigurationError: the address cannot be used.
        """
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=MAX_HEADER_BYTES)
        except OSError as error:
            raise ConfigurationError(f"The admin port {host}:{port} cannot be used: {error}.") from error
        self.port = self._server.sockets[0].getsockname()[1]
        _log.event("admin.listening", host=host, port=self.port)

    async def close(self) -> None:
        """Stop listening and end open connections; idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._answer(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return  # a slow client, or one that went away
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            header = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            too_large = _Response.of(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            writer.write(too_large.encode(with_body=True))
        else:
            request_line, *lines = header.split("\r\n")
            response = self._respond(request_line, _accepted_types(lines))
            writer.write(response.encode(with_body=not request_line.startswith("HEAD ")))
        await writer.drain()

    def _respond(self, request_line: str, accept: str) -> _Response:
        parts = request_line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _Response.of(HTTPStatus.BAD_REQUEST)
        method, target, _ = parts
        if method not in ("GET", "HEAD"):
            return _Response.of(HTTPStatus.METHOD_NOT_ALLOWED)
        match target.partition("?")[0]:
            case "/livez":
                return _state(self._liveness())
            case "/readyz":
                return _state(self._readiness())
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return _Response(HTTPStatus.OK, encode(self._registry), content_type)
            case _:
                return _Response.of(HTTPStatus.NOT_FOUND)


@asynccontextmanager
async def serve_admin(
    host: str,
    port: int,
    registry: CollectorRegistry,
    readiness: Callable[[], bool],
    liveness: Callable[[], bool] = lambda: True,
) -> AsyncIterator[AdminServer]:
    """Answer on ``host:port`` while the context lasts; both callables are quick and do not fail.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    server = AdminServer(registry, readiness, liveness)
    await server.start(host, port)
    try:
        yield server
    finally:
        await server.close()


def _accepted_types(lines: list[str]) -> str:
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


def _state(is_good: bool) -> _Response:
    return _Response.of(HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE)
