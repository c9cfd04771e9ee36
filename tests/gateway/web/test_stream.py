"""Streams of server-sent events as a server sees them."""

import asyncio
from collections.abc import AsyncGenerator

import orjson
import pytest
from starlette.types import Message, Scope, Send

from services.errors import Overloaded
from services.gateway.apis.openai.sse import last_words
from services.gateway.web.stream import KEEP_ALIVE, EventStream
from tests.gateway.twins import Script, card, chat_body, member, tokens, world
from tests.gateway.web.conftest import LoopTime

SCOPE: Scope = {
    "type": "http",
    "method": "POST",
    "path": "/v1/chat/completions",
    "raw_path": b"/v1/chat/completions",
    "query_string": b"",
    "headers": [],
    "client": ("127.0.0.1", 1),
    "server": ("gateway", 80),
    "scheme": "http",
    "http_version": "1.1",
}


async def never_leaves() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def taking(number: int, sent: list[Message]) -> Send:
    """Return how a client is sent messages that reads no more than so many."""

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > number:
            await asyncio.Event().wait()

    return send


async def test_of_a_client_that_does_not_read_only_so_many_tokens_are_read() -> None:
    num_tokens, is_taken, is_gone = 4000, asyncio.Event(), asyncio.Event()
    body = orjson.dumps(chat_body(stream=True, max_tokens=num_tokens, ignore_eos=True))
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not requests:
            await is_gone.wait()
        return requests.pop() if requests else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            is_taken.set()
            await asyncio.Event().wait()

    model = card(context_length=8192)
    async with world(members=[member("d1", model=model)], model=model) as w:
        w.decode.default = Script(tokens("Paris") * num_tokens)
        call = asyncio.create_task(w.gateway.app(SCOPE, receive, send))
        await is_taken.wait()
        for _ in range(2 * num_tokens):
            await asyncio.sleep(0)
        num_read = w.metrics.get_sample_value("tandem_output_tokens_total")
        is_gone.set()
        await call
        assert (w.gateway.drain.num_open, w.decode.num_closed) == (0, 1)
    assert num_read is not None
    assert num_read <= 1  # what is being sent


async def test_a_client_that_does_not_read_counts_as_gone() -> None:
    sent: list[Message] = []
    is_closed = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0)
        finally:
            is_closed.set()

    stream = EventStream(chunks(), silent_start_s=60.0, keep_alive_s=60.0, send_timeout_s=0.01, last_words=last_words)
    await stream({"type": "http", "state": {"token": "abc"}}, never_leaves, taking(2, sent))

    assert is_closed.is_set()
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]


async def test_silence_is_broken_and_a_client_that_does_not_read_that_counts_as_gone() -> None:
    sent: list[Message] = []
    is_closed = asyncio.Event()

    async def silence() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            is_closed.set()

    stream = EventStream(silence(), silent_start_s=0.01, keep_alive_s=0.01, send_timeout_s=0.01, last_words=last_words)
    await stream({"type": "http", "state": {"token": "abc"}}, never_leaves, taking(2, sent))

    assert is_closed.is_set()
    assert [message.get("body") for message in sent] == [None, KEEP_ALIVE, KEEP_ALIVE]


async def test_a_stream_that_started_is_kept_alive_sooner_than_one_that_has_not() -> None:
    sent: list[Message] = []
    is_kept_alive = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(5):
            await asyncio.sleep(0)
        yield b"data: x\n\n"
        await is_kept_alive.wait()

    async def send(message: Message) -> None:
        sent.append(message)
        if message.get("body") == KEEP_ALIVE:
            is_kept_alive.set()

    stream = EventStream(chunks(), silent_start_s=600.0, keep_alive_s=0.01, send_timeout_s=60.0, last_words=last_words)
    async with asyncio.timeout(30.0):
        await stream({"type": "http", "state": {"token": "abc"}}, never_leaves, send)

    assert [message.get("body") for message in sent][:3] == [None, b"data: x\n\n", KEEP_ALIVE]


async def test_no_comment_begins_a_stream_that_has_failed(loop_time: LoopTime) -> None:
    sent: list[Message] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(5):
            await asyncio.sleep(0)
        loop_time.pass_by(0.03)  # in the same moment the silence gets too long
        raise Overloaded("full")
        yield b""

    async def send(message: Message) -> None:
        sent.append(message)

    stream = EventStream(chunks(), silent_start_s=0.01, keep_alive_s=0.01, send_timeout_s=60.0, last_words=last_words)
    with pytest.raises(Overloaded):
        await stream({"type": "http", "state": {"token": "abc"}}, never_leaves, send)

    assert sent == []
