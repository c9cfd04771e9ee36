"""Serves the application over HTTP until the process is told to leave, and then leaves in order."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import uvicorn
from fastapi import FastAPI

from services.errors import ConfigurationError
from services.gateway.drain import Drain
from services.gateway.settings import GatewaySettings
from services.gateway.web.http_protocol import bounded
from services.telemetry.logs import get_logger

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BACKLOG = 2048
_CLOSE_TIMEOUT_S = 1
"""For what is still open when the time of running answers is over."""

_log = get_logger(__name__)


class HttpServer:
    """One listener.

    On the first signal: not ready any more; after ``drain_delay_s`` every new request, on open connections and
    on new ones, gets 503 and ``Connection: close``; running answers have ``drain_timeout_s`` to end. When none
    is left, or their time is over, the listener and what is still open are closed. On the second signal: at once.
    """

    def __init__(self, app: FastAPI, settings: GatewaySettings, drain: Drain) -> None:
        self._settings = settings
        self._drain = drain
        self._signalled = asyncio.Event()
        self._server = _Server(
            uvicorn.Config(
                app,
                http=bounded(max_head_bytes=settings.max_header_bytes, head_timeout_s=settings.header_timeout_s),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=settings.idle_connection_s,
                timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
            )
        )

    async def run(self) -> None:
        """Serve until a signal came and everything is answered.

        Raises:
            ConfigurationError: the address cannot be used.
        """
        listener = _listen(self._settings.host, self._settings.port, self._settings.send_timeout_s)
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                leaving = tasks.create_task(self._leave_when_told())
                _log.event("gateway.listening", host=self._settings.host, port=listener.getsockname()[1])
                await self._server.serve(sockets=[listener])
                leaving.cancel()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            listener.close()

    def _on_signal(self) -> None:
        if self._signalled.is_set():
            self._server.force_exit = self._server.should_exit = True
        self._signalled.set()

    async def _leave_when_told(self) -> None:
        await self._signalled.wait()
        _log.event("gateway.draining", open_requests=self._drain.num_open)
        await self._drain.leave(self._settings.drain_delay_s)
        num_left = await self._drain.wait_answered(self._settings.drain_timeout_s)
        _log.event("gateway.drained", open_requests=num_left)
        self._server.should_exit = True


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``HttpServer``."""
        yield


def _listen(host: str, port: int, send_timeout_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"The address {host}:{port} cannot be used: {error}.") from error
    # Connections inherit it: closing one waits for its unsent bytes, which a client that does not read never takes.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ceil(1e3 * send_timeout_s))
    return listener
