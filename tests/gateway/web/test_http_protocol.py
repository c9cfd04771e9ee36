"""The head of a request has a size and a deadline; what is refused there is told in the shape of the OpenAI API."""

import asyncio
import json
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from services.gateway.web.http_protocol import bounded

MAX_HEAD_BYTES = 1000


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


class Wire(asyncio.Transport):
    """The side of a connection that the gateway sees."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    @property
    def refusal(self) -> tuple[int, str]:
        """The status and code of the one answer, after which the gateway hangs up."""
        head, _, body = self.written.partition(b"\r\n\r\n")
        error = json.loads(body)["error"]
        assert self.is_closed and b"connection: close" in head
        assert error.keys() == {"message", "type", "param", "code"}
        return int(head.split()[1]), error["code"]


class Connection:
    def __init__(self, head_timeout_s: float = 60.0) -> None:
        self.wire, self.state = Wire(), ServerState()
        protocol = bounded(max_head_bytes=MAX_HEAD_BYTES, head_timeout_s=head_timeout_s)
        config = Config(application, http=protocol, ws="none", lifespan="off", log_config=None)
        config.load()
        self.protocol: Any = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=self.state, app_state={}
        )
        self.protocol.connection_made(self.wire)

    async def feed(self, *parts: bytes) -> Wire:
        """Receive ``parts``, each answered as far as it can be before the next."""
        for part in parts:
            if not self.wire.is_closed:
                self.protocol.data_received(part)
            await asyncio.gather(*self.state.tasks)
        return self.wire


def padded(num_bytes: int) -> bytes:
    start, end = b"GET / HTTP/1.1\r\nx: ", b"\r\n\r\n"
    return start + b"a" * (num_bytes - len(start) - len(end)) + end


async def test_a_head_of_the_allowed_size_is_answered_again_and_again() -> None:
    wire = await Connection().feed(*[padded(MAX_HEAD_BYTES)] * 5)
    assert wire.written.count(b"HTTP/1.1 204") == 5
    assert not wire.is_closed


async def test_the_body_does_not_count() -> None:
    head = b"POST / HTTP/1.1\r\ncontent-length: 5000\r\n\r\n"
    wire = await Connection().feed(head + b"x" * 5000, head + b"x" * 5000)
    assert wire.written.count(b"HTTP/1.1 204") == 2


@pytest.mark.parametrize(
    "sent",
    [
        [padded(MAX_HEAD_BYTES + 100)],
        [bytes([byte]) for byte in padded(MAX_HEAD_BYTES + 100)],
        [b"GET /" + b"a" * 2000],
        [b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 400],
        [b"GET / HTTP/1.1\r\nx: ", *[b"a" * 10] * 200],
        [padded(100), padded(MAX_HEAD_BYTES + 100)],
    ],
    ids=["at once", "bytewise", "a line", "many headers", "one header without an end", "the second one"],
)
async def test_a_larger_head_is_431(sent: list[bytes]) -> None:
    wire = await Connection().feed(*sent)
    wire.written = wire.written[wire.written.rindex(b"HTTP/1.1 ") :]
    assert wire.refusal == (431, "headers_too_large")


async def test_trailers_belong_to_the_head() -> None:
    head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    connection = Connection()
    connection.protocol.data_received(head + b"a: b\r\n" * 1000)
    assert connection.wire.is_closed
    assert len(connection.protocol.headers) <= MAX_HEAD_BYTES


async def test_what_is_no_http_is_400() -> None:
    assert (await Connection().feed(b"\x16\x03\x01")).refusal == (400, "invalid_http")


@pytest.mark.parametrize("sent", [b"G", b"GET / HT", b"GET / HTTP/1.1\r\nx: a\r\n"])
async def test_a_head_that_does_not_come_is_408(sent: bytes) -> None:
    connection = Connection()
    wire = await connection.feed(sent)
    connection.protocol._on_deadline()
    assert wire.refusal == (408, "request_timeout")


async def test_a_connection_opened_in_advance_is_closed_without_a_word() -> None:
    connection = Connection()
    connection.protocol._on_deadline()
    assert (connection.wire.written, connection.wire.is_closed) == (b"", True)


async def test_the_deadline_is_not_renewed_by_every_byte() -> None:
    connection = Connection()
    deadline = connection.protocol._deadline
    await connection.feed(b"GET / HTTP/1.1\r\n", b"x: ", b"a")
    assert connection.protocol._deadline is deadline


async def test_an_answered_request_has_no_deadline_and_the_next_one_has() -> None:
    connection = Connection()
    await connection.feed(padded(100))
    assert connection.protocol._deadline is None
    await connection.feed(b"GET /")
    assert connection.protocol._deadline is not None


async def test_the_rest_of_a_body_that_was_answered_has_a_deadline() -> None:
    connection = Connection()
    wire = await connection.feed(b"POST / HTTP/1.1\r\ncontent-length: 5000\r\n\r\n", b"x")
    assert (wire.written.count(b"HTTP/1.1"), wire.is_closed) == (1, False)
    connection.protocol._on_deadline()
    assert (wire.written.count(b"HTTP/1.1"), wire.is_closed) == (1, True)


async def test_a_lost_connection_has_no_deadline() -> None:
    connection = Connection()
    connection.protocol.connection_lost(None)
    assert connection.protocol._deadline is None
