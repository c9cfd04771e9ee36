"""Clients that keep asking for streams, and notice how each one ended."""

import asyncio
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPT_WORDS = 60
"""About 200 tokens: too long to stay with the decode worker."""
_POLL_S = 0.05


@dataclass
class Stream:
    """One stream, from the client's side."""

    began_s: float
    ended_s: float = 0.0
    num_pieces: int = 0
    reason: str | None = None
    """Why it ended; None if it was cut off."""
    is_done: bool = False
    """The last line came."""
    proof: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    def read(self, line: str) -> None:
        """Take one line of server-sent events."""
        data = line.removeprefix("data: ")
        if data == line:
            return
        if data == "[DONE]":
            self.is_done = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.problem = str(chunk["error"])
            return
        (choice,) = chunk["choices"]
        self.num_pieces += bool(choice["delta"].get("content"))
        self.reason = choice["finish_reason"]
        self.proof = chunk.get("tandem", {})


@dataclass
class Clients:
    """Several clients of one gateway; each opens its next stream when one ended, until it is refused."""

    base_url: str
    key: str
    model: str
    max_tokens: int
    streams: list[Stream] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    """When requests got no stream."""

    async def run(self, num_clients: int) -> None:
        """Ask until every client was refused."""
        async with httpx.AsyncClient(base_url=self.base_url, timeout=120.0, trust_env=False) as client:
            await asyncio.gather(*(self._keep_asking(client) for _ in range(num_clients)))

    async def more_ended(self, num_streams: int) -> None:
        """Wait until that many further streams ended."""
        wanted = self.num_ended + num_streams
        while self.num_ended < wanted:
            await asyncio.sleep(_POLL_S)

    @property
    def num_ended(self) -> int:
        return sum(bool(stream.ended_s) for stream in self.streams)

    async def _keep_asking(self, client: httpx.AsyncClient) -> None:
        while await self._stream(client):
            pass

    async def _stream(self, client: httpx.AsyncClient) -> bool:
        """Read one stream; return whether there was one."""
        stream: Stream | None = None
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            async with client.stream("POST", "/v1/chat/completions", json=self._body(), headers=headers) as response:
                if not response.is_success:
                    self.refused_s.append(time.monotonic())
                    return False
                stream = Stream(time.monotonic())
                self.streams.append(stream)
                async for line in response.aiter_lines():
                    stream.read(line)
        except httpx.TransportError as error:
            if stream is None:
                self.refused_s.append(time.monotonic())
                return False
            stream.problem = repr(error)
        stream.ended_s = time.monotonic()
        return True

    def _body(self) -> dict[str, Any]:
        words = " ".join(secrets.token_hex(2) for _ in range(PROMPT_WORDS))
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
