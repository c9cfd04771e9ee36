"""A gateway as a process of its own, with a real Redis and a decode worker that plays scripts over gRPC."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.redis_registry import RedisRegistry
from services.kv.card import ModelCard
from services.telemetry.clock import SystemClock
from tests.gateway.decode_server import SECRET, serving
from tests.gateway.twins import DecodeTwin, card, member

DEADLINE_S = 60.0


@dataclass
class Running:
    process: Process
    url: str
    admin_url: str
    decode: DecodeTwin
    redis: EmbeddedRedis

    def client(self) -> httpx.AsyncClient:
        """Return a client with the patience for a busy host."""
        return httpx.AsyncClient(base_url=self.url, timeout=DEADLINE_S)


@asynccontextmanager
async def gateway(tmp_path: Path, *options: str, model: ModelCard | None = None) -> AsyncIterator[Running]:
    """A gateway process that knows one decode worker."""
    secret_file = tmp_path / "secret"
    secret_file.write_bytes(SECRET)
    secret_file.chmod(0o600)
    twin = DecodeTwin()
    async with EmbeddedRedis(tmp_path) as redis, serving(twin) as address:
        registry = RedisRegistry(redis.url, SECRET, SystemClock(), lease_s=600, timeout_s=30.0)
        model = model or card()
        await registry.join(replace(member("d1", model=model), address=address), model)
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
    async with asyncio.timeout(DEADLINE_S):
        while line := (await process.stderr.readline()).decode():
            if event in line:
                return int(json.loads(line)["port"]) if line.startswith("{") else int(line.rsplit("port=", 1)[1])
    raise AssertionError(f"the gateway ended before {event}")


async def _until_ready(running: Running) -> None:
    async with asyncio.timeout(DEADLINE_S), running.client() as client:
        while (await client.get(f"{running.admin_url}/readyz")).status_code != 200:
            await asyncio.sleep(0.02)
