import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus

import pytest
from prometheus_client import CollectorRegistry

from services.errors import ConfigurationError
from services.telemetry.admin_server import MAX_CONNECTIONS, MAX_HEADER_BYTES, AdminServer, serve_admin
from services.telemetry.metrics import WorkerMetrics


class Probe:
    """A worker's admin port, and what its probes say."""

    def __init__(self) -> None:
        self.is_ready = False
        self.is_live = True
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry)
        self.port = 0

    async def send(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        async with asyncio.timeout(30):
            reply = await reader.read()
        writer.close()
        await writer.wait_closed()
        return reply

    async def get(self, path: str, *, method: str = "GET", header: str = "") -> tuple[int, str]:
        reply = await self.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        head, _, body = reply.decode().partition("\r\n\r\n")
        return int(head.split(" ")[1]), body


@pytest.fixture
async def probe() -> AsyncIterator[Probe]:
    probe = Probe()
    async with serve_admin("127.0.0.1", 0, probe.registry, lambda: probe.is_ready, lambda: probe.is_live) as server:
        probe.port = server.port
        yield probe


async def test_probes_say_what_the_worker_says(probe: Probe) -> None:
    assert await probe.get("/livez") == (200, "OK\n")
    assert await probe.get("/readyz") == (503, "Service Unavailable\n")
    probe.is_ready = True
    probe.is_live = False
    assert await probe.get("/readyz?verbose") == (200, "OK\n")
    assert await probe.get("/livez") == (503, "Service Unavailable\n")


async def test_metrics_are_exported_as_text(probe: Probe) -> None:
    probe.metrics.steps.inc(3)
    status, body = await probe.get("/metrics")
    assert status == 200
    assert "tandem_steps_total 3.0\n" in body


async def test_metrics_are_exported_as_openmetrics_when_asked_for(probe: Probe) -> None:
    status, body = await probe.get("/metrics", header="Accept: application/openmetrics-text; version=1.0.0\r\n")
    assert status == 200
    assert body.endswith("# EOF\n")


async def test_head_gets_no_body(probe: Probe) -> None:
    assert await probe.get("/livez", method="HEAD") == (200, "")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", HTTPStatus.NOT_FOUND),
        (b"GET /metrics/x HTTP/1.1\r\n\r\n", HTTPStatus.NOT_FOUND),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"nonsense\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /livez HTTP/2\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"\xff\xfe\x00\r\n\r\n", HTTPStatus.BAD_REQUEST),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 4 * MAX_HEADER_BYTES, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    ],
)
async def test_other_requests_are_refused(probe: Probe, request_bytes: bytes, status: HTTPStatus) -> None:
    assert (await probe.send(request_bytes)).startswith(f"HTTP/1.1 {status.value} ".encode())


async def test_a_client_that_sends_half_a_request_is_let_go() -> None:
    server = AdminServer(CollectorRegistry(), lambda: True, lambda: True, request_timeout_s=0.05)
    await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /livez HTTP/1.1\r\n")
    async with asyncio.timeout(30):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    await server.close()


async def test_connections_are_bounded_and_others_are_served_afterwards(probe: Probe) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", probe.port) for _ in range(MAX_CONNECTIONS)]
    with pytest.raises((ConnectionError, IndexError)):
        await probe.get("/livez")
    for _, writer in idle:
        writer.close()
    async with asyncio.timeout(30):
        while await _is_refused(probe):
            await asyncio.sleep(0.01)


async def _is_refused(probe: Probe) -> bool:
    try:
        return await probe.get("/livez") != (200, "OK\n")
    except (ConnectionError, IndexError):
        return True


async def test_closing_ends_open_connections() -> None:
    server = AdminServer(CollectorRegistry(), lambda: True, lambda: True, request_timeout_s=600)
    await server.start("127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /livez")
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await server.close()
        await server.close()
    writer.close()


async def test_a_used_port_is_a_configuration_error(probe: Probe) -> None:
    with pytest.raises(ConfigurationError):
        async with serve_admin("127.0.0.1", probe.port, probe.registry, lambda: True):
            pass
