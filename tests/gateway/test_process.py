"""The gateway as a process: real Redis, real gRPC, signals."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.redis_registry import RedisRegistry
from services.telemetry.clock import SystemClock
from tests.gateway.decode_server import SECRET
from tests.gateway.process import Running, gateway
from tests.gateway.twins import END_ID, Script, card, chat_body, events, tokens


async def test_a_chat_goes_through_redis_and_grpc(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, running.client() as client:
        response = await client.post("/v1/chat/completions", json=chat_body())
        timeline = await client.get(f"/v1/requests/{response.headers['x-request-id']}/timeline")
        on_main = await client.get("/metrics")

    assert response.json()["choices"][0]["message"]["content"] == "Paris"
    assert timeline.json()["project"] == "default"
    assert on_main.status_code == 404


async def test_with_redis_hanging_answers_do_not_wait_for_it(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "--redis-timeout-s", "600") as running,
        running.client() as client,
    ):
        await client.post("/v1/chat/completions", json=chat_body())
        assert running.redis.pid is not None
        os.kill(running.redis.pid, signal.SIGSTOP)
        try:
            response = await client.post("/v1/chat/completions", json=chat_body())
            timeline = await client.get(f"/v1/requests/{response.headers['x-request-id']}/timeline")
        finally:
            os.kill(running.redis.pid, signal.SIGCONT)

    assert (response.status_code, timeline.status_code) == (200, 200)


@pytest.mark.parametrize("as_json", [False, True])
async def test_every_line_of_the_log_has_one_form(tmp_path: Path, as_json: bool) -> None:
    async with gateway(tmp_path, "--log-json" if as_json else "--no-log-json") as running:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.stderr is not None
        lines = (await asyncio.wait_for(running.process.stderr.read(), 30)).decode().splitlines()

    assert any("gateway.draining" in line for line in lines)
    for line in lines:
        if as_json:
            assert json.loads(line)["process"] == "gateway"
        else:
            assert re.match(r"\d\d:\d\d:\d\d\.\d{3} [DIWE] gateway ", line), line


async def test_a_client_that_does_not_read_loses_its_work_and_its_connection(tmp_path: Path) -> None:
    options = ("--send-timeout-s", "0.2", "--default-max-tokens", "100000")
    model = card(context_length=200_000)
    async with gateway(tmp_path, *options, model=model) as running:
        running.decode.default = Script(tokens("Paris") * 20_000)
        body = json.dumps(chat_body(stream=True)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))) as client:
            client.sendall(head + body)
            async with asyncio.timeout(60):
                while not running.decode.num_closed:
                    await asyncio.sleep(0.02)
                running.process.send_signal(signal.SIGTERM)
                assert await running.process.wait() == 0  # long before the drain's time is over


async def test_a_connection_that_is_idle_for_too_long_is_closed(tmp_path: Path) -> None:
    async with gateway(tmp_path, "--idle-connection-s", "1") as running:
        head = await _ask_raw(running.url)
        assert head.startswith("HTTP/1.1 200") and "connection: close" not in head


async def test_sigterm_lets_open_streams_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, running.client() as client:
        running.decode.default = Script([*tokens("Paris"), END_ID], hang_after=1)
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body(stream=True)))
        await running.decode.hanging.wait()

        running.process.send_signal(signal.SIGTERM)
        await _until_refused(running)
        assert not streaming.done()
        running.decode.release.set()
        response = await streaming
        status = await asyncio.wait_for(running.process.wait(), 30)

    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(response))
    assert (text, status) == ("Paris", 0)


async def test_while_streams_run_on_every_new_request_is_told_to_go_elsewhere(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "--drain-timeout-s", "600") as running,
        running.client() as client,
        running.client() as kept_alive,
    ):
        await kept_alive.get("/v1/models")
        running.decode.default = Script([*tokens("Paris"), END_ID], hang_after=1)
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body(stream=True)))
        await running.decode.hanging.wait()
        running.process.send_signal(signal.SIGTERM)
        await _until_refused(running)

        on_open_connection = await kept_alive.post("/v1/chat/completions", json=chat_body())
        on_new_connections = [await _ask_raw(running.url) for _ in range(3)]
        ready = await kept_alive.get(f"{running.admin_url}/readyz")
        live = await kept_alive.get(f"{running.admin_url}/livez")
        assert not streaming.done()
        running.decode.release.set()
        response = await streaming
        status = await asyncio.wait_for(running.process.wait(), 30)

    assert on_open_connection.status_code == 503
    assert on_open_connection.headers["connection"] == "close"
    assert int(on_open_connection.headers["retry-after"]) >= 1
    assert on_open_connection.json()["error"]["code"] == "draining"
    for head in on_new_connections:
        assert head.startswith("HTTP/1.1 503 ")
        assert "\r\nconnection: close\r\n" in head
        assert "\r\nretry-after: " in head
    assert (ready.status_code, live.status_code) == (503, 200)
    assert len(running.decode.requests) == 1
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(response))
    assert (text, status) == ("Paris", 0)


async def test_when_the_grace_ends_the_rest_is_cut(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "--drain-timeout-s", "0.2") as running,
        running.client() as client,
    ):
        running.decode.default = Script(tokens("Paris"), hang_after=1)
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body(stream=True)))
        await running.decode.hanging.wait()
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.process.wait(), 30) == 0
        with pytest.raises(httpx.RemoteProtocolError):
            await streaming
        async with asyncio.timeout(30):
            while not running.decode.num_closed:
                await asyncio.sleep(0.02)


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, running.client() as client:
        running.decode.default = Script(tokens("Paris"), hang_after=1)
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body(stream=True)))
        await running.decode.hanging.wait()

        running.process.send_signal(signal.SIGTERM)
        await _until_refused(running)
        running.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(running.process.wait(), 30)
        await asyncio.gather(streaming, return_exceptions=True)


async def test_chats_work_while_redis_is_away(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, running.client() as client:
        await client.post("/v1/chat/completions", json=chat_body())
        await running.redis.stop()
        response = await client.post("/v1/chat/completions", json=chat_body())
        timeline = await client.get("/v1/requests/req_older/timeline")
        ready = await client.get(f"{running.admin_url}/readyz")

    assert response.status_code == 200
    assert timeline.status_code == 503
    assert ready.status_code == 200


@pytest.mark.parametrize("options", [["--port", "x"], ["--nonsense", "1"], ["--host", "203.0.113.1"]])
async def test_a_wrong_setting_ends_it_with_a_sentence(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "services.gateway", "--secret-file", str(tmp_path / "secret")]
    command += ["--admin-port", "0", "--redis-url", f"unix://{tmp_path}/none.sock", *options]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=dict(os.environ))
    _, stderr = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 2
    assert b"Traceback" not in stderr


async def test_a_redis_of_a_newer_version_ends_it_with_a_sentence(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as redis, Redis.from_url(redis.url) as client:
        await client.set("tandem:schema", 99)
        command = [sys.executable, "-m", "services.gateway", "--secret-file", str(tmp_path / "secret")]
        command += ["--port", "0", "--admin-port", "0", "--redis-url", redis.url]
        process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
        _, stderr = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 2
    assert b"have version 99 and this Tandem knows" in stderr
    assert b"Traceback" not in stderr


async def _ask_raw(url: str) -> str:
    """Send a request over a connection of its own, and return the head of the answer once the server has closed it."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer.decode().split("\r\n\r\n")[0].lower().replace("http/", "HTTP/", 1) + "\r\n"


async def _until_refused(running: Running) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with running.client() as client:
                    if (await client.get("/v1/models")).status_code == 503:
                        return
            except httpx.ConnectError:
                return
            await asyncio.sleep(0.02)


async def test_the_channel_to_a_worker_that_left_is_closed(tmp_path: Path) -> None:
    async with gateway(tmp_path, "--members-interval-s", "0.1") as running:
        async with running.client() as client:
            await client.post("/v1/chat/completions", json=chat_body())
        registry = RedisRegistry(running.redis.url, SECRET, SystemClock(), timeout_s=30.0)
        (left,) = await registry.members()
        await registry.leave(left.member_id)
        await registry.close()
        assert running.process.stderr is not None
        async with asyncio.timeout(30):
            while "channel.closed" not in (line := (await running.process.stderr.readline()).decode()):
                assert line, "the gateway ended before it closed the channel"
        assert left.address in line
