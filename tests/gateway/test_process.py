"""The gateway as a process: real Redis, real gRPC, signals."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.redis_registry import RedisRegistry
from services.telemetry.clock import SystemClock
from tests.gateway.decode_server import SECRET, serving
from tests.gateway.twins import END_ID, DecodeTwin, Script, card, chat_body, events, member, tokens


@dataclass
class Running:
    process: Process
    url: str
    admin_url: str
    decode: DecodeTwin
    redis: EmbeddedRedis


@asynccontextmanager
async def gateway(tmp_path: Path, *options: str) -> AsyncIterator[Running]:
    """A gateway process that knows one decode worker."""
    secret_file = tmp_path / "secret"
    secret_file.write_bytes(SECRET)
    secret_file.chmod(0o600)
    twin = DecodeTwin()
    async with EmbeddedRedis(tmp_path) as redis, serving(twin) as address:
        registry = RedisRegistry(redis.url, SECRET, SystemClock(), lease_s=600)
        await registry.join(replace(member("d1"), address=address), card())
        await registry.close()
        command = [sys.executable, "-m", "services.gateway", "--redis-url", redis.url, "--port", "0"]
        command += ["--admin-port", "0", "--secret-file", str(secret_file), *options]
        process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=dict(os.environ))
        try:
            admin_port = await _port(process, "admin.listening")
            port = await _port(process, "gateway.listening")
            running = Running(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", twin, redis)
            await _until_ready(running)
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def _port(process: Process, event: str) -> int:
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while line := (await process.stderr.readline()).decode():
            if event in line:
                return int(line.rsplit("port=", 1)[1].split()[0])
    raise AssertionError(f"the gateway ended before {event}")


async def _until_ready(running: Running) -> None:
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while (await client.get(f"{running.admin_url}/readyz")).status_code != 200:
            await asyncio.sleep(0.02)


async def test_a_chat_goes_through_redis_and_grpc(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, httpx.AsyncClient(base_url=running.url) as client:
        response = await client.post("/v1/chat/completions", json=chat_body())
        timeline = await client.get(f"/v1/requests/{response.headers['x-request-id']}/timeline")
        on_main = await client.get("/metrics")

    assert response.json()["choices"][0]["message"]["content"] == "Paris"
    assert timeline.json()["project"] == "default"
    assert on_main.status_code == 404


async def test_sigterm_lets_open_streams_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, httpx.AsyncClient(base_url=running.url) as client:
        running.decode.default = Script([*tokens("Paris"), END_ID], hang_after=1)
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body(stream=True)))
        await running.decode.hanging.wait()

        running.process.send_signal(signal.SIGTERM)
        await _until_refused(running.url)
        assert not streaming.done()
        running.decode.release.set()
        response = await streaming
        status = await asyncio.wait_for(running.process.wait(), 30)

    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(response))
    assert (text, status) == ("Paris", 0)


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, httpx.AsyncClient(base_url=running.url) as client:
        running.decode.default = Script(tokens("Paris"), hang_after=1)
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body(stream=True)))
        await running.decode.hanging.wait()

        running.process.send_signal(signal.SIGTERM)
        await _until_refused(running.url)
        running.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(running.process.wait(), 30)
        await asyncio.gather(streaming, return_exceptions=True)


async def test_chats_work_while_redis_is_away(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, httpx.AsyncClient(base_url=running.url) as client:
        await client.post("/v1/chat/completions", json=chat_body())
        await running.redis.stop()
        response = await client.post("/v1/chat/completions", json=chat_body())
        timeline = await client.get(f"/v1/requests/{response.headers['x-request-id']}/timeline")
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


async def _until_refused(url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with httpx.AsyncClient() as client:
                    if (await client.get(f"{url}/v1/models")).status_code == 503:
                        return
            except httpx.ConnectError:
                return
            await asyncio.sleep(0.02)
