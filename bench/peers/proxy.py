"""What stands before vLLM's prefill and decode servers: ``python -m bench.peers.proxy PORT PREFILL_URL DECODE_URL``.

A request goes to the prefill server for a single token, whose answer says where its KV lies; then it goes, with that,
to the decode server, whose answer is passed on as it comes.
"""

import argparse
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

REQUEST_TIMEOUT_S = 600.0
_REMOTE_FIELDS = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
_OF_STREAMS_AND_LENGTH = ("stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens")
_UPSTREAM = web.AppKey("upstream", aiohttp.ClientSession)


def prefill_body(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request that computes the prompt of ``body`` and keeps its KV for another server."""
    kept = {name: value for name, value in body.items() if name not in _OF_STREAMS_AND_LENGTH}
    transfer = {"do_remote_decode": True, "do_remote_prefill": False, **dict.fromkeys(_REMOTE_FIELDS)}
    return {**kept, "stream": False, "max_tokens": 1, "kv_transfer_params": transfer}


def application(prefill_url: str, decode_url: str) -> web.Application:
    """Return the proxy, which answers ``/health`` and ``/v1/chat/completions``."""

    async def health(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def chat(request: web.Request) -> web.StreamResponse:
        upstream, body = request.app[_UPSTREAM], await request.json()
        async with upstream.post(prefill_url + request.path, json=prefill_body(body)) as prefilled:
            if prefilled.status != 200:
                return await _passed_on(request, prefilled)
            transfer = json.loads(await prefilled.read())["kv_transfer_params"]
        async with upstream.post(decode_url + request.path, json={**body, "kv_transfer_params": transfer}) as decoded:
            return await _passed_on(request, decoded)

    app = web.Application(client_max_size=1 << 24)
    app.cleanup_ctx.append(_upstream)
    app.add_routes([web.get("/health", health), web.post("/v1/chat/completions", chat)])
    return app


async def _upstream(app: web.Application) -> AsyncIterator[None]:
    timeout, connector = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        app[_UPSTREAM] = session
        yield


async def _passed_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
    await response.prepare(request)
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("prefill_url")
    parser.add_argument("decode_url")
    options = parser.parse_args()
    web.run_app(application(options.prefill_url, options.decode_url), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
