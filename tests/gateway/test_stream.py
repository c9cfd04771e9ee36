"""Streams of server-sent events as a server sees them."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Message

from services.gateway.apis.openai.sse import last_words
from services.gateway.stream import EventStream


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

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 2:
            await asyncio.Event().wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    stream = EventStream(chunks(), silent_start_s=60.0, keep_alive_s=60.0, send_timeout_s=0.01, last_words=last_words)
    await stream({"type": "http", "state": {"token": "abc"}}, receive, send)

    assert is_closed.is_set()
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]
