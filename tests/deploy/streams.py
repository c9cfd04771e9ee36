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

    max_tokens: int
    began_s: float
    first_token_s: float = 0.0
    ended_s: float = 0.0
    num_pieces: int = 0
    num_tokens: int = 0
    """As its usage says."""
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
        if chunk["usage"] is not None:
            self.num_tokens = chunk["usage"]["completion_tokens"]
            self.proof = chunk["usage"]["tandem"]
            return
        (choice,) = chunk["choices"]
        if choice["delta"].get("content"):
            self.first_token_s = self.first_token_s or time.monotonic()
            self.num_pieces += 1
        self.reason = choice["finish_reason"]


@dataclass
class Clients:
    """Several clients of one gateway; each opens its next stream when one ended, until it is refused."""

    base_url: str
    key: str
    model: str
    max_tokens: int
    """Of the streams that begin from now on."""
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

    async def all_opened(self, num_streams: int, max_tokens: int) -> None:
        """Let new streams have so many tokens, and wait until so many of them are open and have begun to answer."""
        self.max_tokens = max_tokens
        while sum(one.max_tokens == max_tokens and one.num_pieces > 0 for one in self.streams) < num_streams:
            await asyncio.sleep(_POLL_S)

    @property
    def tokens_per_s(self) -> float:
        """How fast the last stream that ended was, after its first token."""
        last = max((one for one in self.streams if one.ended_s), key=lambda one: one.ended_s)
        return last.num_tokens / (last.ended_s - last.first_token_s)

    @property
    def num_ended(self) -> int:
        return sum(bool(stream.ended_s) for stream in self.streams)

    async def _keep_asking(self, client: httpx.AsyncClient) -> None:
        while await self._stream(client):
            pass

    async def _stream(self, client: httpx.AsyncClient) -> bool:
        """Read one stream; return whether there was one."""
        stream: Stream | None = None
        max_tokens = self.max_tokens
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            body = self._body(max_tokens)
            async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                if not response.is_success:
                    self.refused_s.append(time.monotonic())
                    return False
                stream = Stream(max_tokens, time.monotonic())
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

    def _body(self, max_tokens: int) -> dict[str, Any]:
        words = " ".join(secrets.token_hex(2) for _ in range(PROMPT_WORDS))
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
