import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from bench.peers.proxy import application

Client = TestClient[web.Request, web.Application]
BODY = {
    "model": "model",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}
TRANSFER = {"do_remote_prefill": True, "remote_engine_id": "engine", "remote_block_ids": [[3, 4]]}


class Upstream:
    """A prefill and a decode server that note what they are asked."""

    def __init__(self, prefill_status: int = 200) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.first_is_read = asyncio.Event()
        self._prefill_status = prefill_status

    async def prefill(self, request: web.Request) -> web.Response:
        self.asked.append(("prefill", await request.json()))
        if self._prefill_status != 200:
            return web.json_response({"error": "too long"}, status=self._prefill_status)
        return web.json_response({"choices": [], "kv_transfer_params": TRANSFER})

    async def decode(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(("decode", await request.json()))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        async with asyncio.timeout(30):
            await self.first_is_read.wait()
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def proxied(upstream: Upstream) -> AsyncIterator[Client]:
    prefill, decode = web.Application(), web.Application()
    prefill.router.add_post("/v1/chat/completions", upstream.prefill)
    decode.router.add_post("/v1/chat/completions", upstream.decode)
    async with TestServer(prefill) as prefill_server, TestServer(decode) as decode_server:
        urls = [str(server.make_url("")).rstrip("/") for server in (prefill_server, decode_server)]
        async with TestClient(TestServer(application(*urls))) as client:
            yield client


async def test_a_request_is_prefilled_for_one_token_and_decoded_with_what_came_of_it() -> None:
    upstream = Upstream()
    upstream.first_is_read.set()

    async with proxied(upstream) as client:
        answer = await client.post("/v1/chat/completions", json=BODY)
        await answer.read()

    (first, prefilled), (second, decoded) = upstream.asked
    assert (first, second) == ("prefill", "decode")
    assert prefilled == {
        "model": "model",
        "messages": BODY["messages"],
        "temperature": 0,
        "ignore_eos": True,
        "stream": False,
        "max_tokens": 1,
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        },
    }
    assert decoded == {**BODY, "kv_transfer_params": TRANSFER}


async def test_tokens_are_passed_on_as_they_come() -> None:
    upstream = Upstream()

    async with proxied(upstream) as client:
        answer = await client.post("/v1/chat/completions", json=BODY)
        assert answer.content_type == "text/event-stream"
        assert await answer.content.readuntil(b"\n\n") == b"data: first\n\n"
        upstream.first_is_read.set()  # the decode server waits for this before it ends
        assert await answer.read() == b"data: [DONE]\n\n"


async def test_what_the_prefill_server_refuses_is_passed_on() -> None:
    upstream = Upstream(prefill_status=400)

    async with proxied(upstream) as client:
        answer = await client.post("/v1/chat/completions", json=BODY)

        assert answer.status == 400
        assert json.loads(await answer.read()) == {"error": "too long"}
    assert [server for server, _ in upstream.asked] == ["prefill"]


async def test_the_proxy_says_that_it_is_there() -> None:
    async with proxied(Upstream()) as client:
        assert (await client.get("/health")).status == 200
