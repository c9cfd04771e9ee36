"""A stream as it comes, and a client that leaves in the middle of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Message

from tests.gateway.runs.client import DEADLINE_S
from tests.gateway.twins import World


@dataclass
class Live:
    """One open request."""

    text: str = ""
    is_over: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _leaving: asyncio.Event = field(default_factory=asyncio.Event)
    _has_asked: bool = False
    body: bytes = b""

    async def until(self, wanted: str) -> None:
        """Wait until the stream has ``wanted`` in it."""
        async with asyncio.timeout(DEADLINE_S):
            while wanted not in self.text:
                assert not self.is_over, self.text
                self._news.clear()
                await self._news.wait()

    def leave(self) -> None:
        """Hang up."""
        self._leaving.set()

    async def receive(self) -> Message:
        if not self._has_asked:
            self._has_asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._leaving.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.text += message.get("body", b"").decode()
        self.is_over = message["type"] == "http.response.body" and not message.get("more_body", False)
        self._news.set()


@asynccontextmanager
async def live(
    w: World, method: str, path: str, *, query: str = "", headers: Any = (), **body: Any
) -> AsyncIterator[Live]:
    """An open request; it is hung up when the block ends."""
    request = Live(body=orjson.dumps(body))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"gateway"), *headers],
        "client": ("127.0.0.1", 5000),
        "server": ("gateway", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    answering = asyncio.create_task(w.gateway.app(scope, request.receive, request.send))
    try:
        yield request
    finally:
        request.leave()
        async with asyncio.timeout(DEADLINE_S):
            await answering
