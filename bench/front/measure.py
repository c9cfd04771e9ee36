"""Starts a gateway, a worker with a stub engine and a load process, and reads what they used."""

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from bench.front.model import NUM_STEPS
from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.secret import load_or_create_secret

START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 300.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class FrontFigures:
    """What one run showed."""

    num_tokens: int
    num_bytes: int
    num_ended: int
    tokens_per_s: float
    tokens_per_gateway_core_s: float
    """Tokens that a second of the gateway's CPU time carries."""
    tokens_per_worker_core_s: float
    """The same of the worker process: decode front, scheduler and stub."""
    latency_p50_ms: float
    """From the step that made a token to the client that read it."""
    latency_p99_ms: float


@dataclass(frozen=True)
class Front:
    """The running processes."""

    gateway: Process
    worker: Process
    port: int
    made_at: Path

    async def load(self, num_streams: int, max_tokens: int) -> FrontFigures:
        """Run the load process once."""
        before = _cpu_s(self.gateway), _cpu_s(self.worker)
        options = ["--streams", str(num_streams), "--max-tokens", str(max_tokens), "--made-at", str(self.made_at)]
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.front.client", str(self.port), *options, stdout=PIPE
        )
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                output, _ = await client.communicate()
        finally:
            if client.returncode is None:
                client.kill()
        gateway_s, worker_s = _cpu_s(self.gateway) - before[0], _cpu_s(self.worker) - before[1]
        seen = json.loads(output)
        return FrontFigures(
            num_tokens=seen["tokens"],
            num_bytes=seen["bytes"],
            num_ended=seen["ended"],
            tokens_per_s=seen["tokens"] / seen["seconds"],
            tokens_per_gateway_core_s=seen["tokens"] / max(gateway_s, 1 / TICKS_PER_S),
            tokens_per_worker_core_s=seen["tokens"] / max(worker_s, 1 / TICKS_PER_S),
            latency_p50_ms=seen["latency_p50_ms"],
            latency_p99_ms=seen["latency_p99_ms"],
        )


@asynccontextmanager
async def front(*, interval_s: float = 0.0) -> AsyncIterator[Front]:
    """Run the processes; steps are at least ``interval_s`` apart."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-front-")))
        secret_file, made_at = folder / "secret", folder / "made_at"
        load_or_create_secret(secret_file)
        np.zeros(NUM_STEPS).tofile(made_at)
        redis = await stack.enter_async_context(EmbeddedRedis(folder))
        shared = ["--redis-url", redis.url, "--secret-file", str(secret_file)]
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "bench.front.worker", *shared, "--made-at", str(made_at), "--interval-s", str(interval_s)),
        )
        stack.push_async_callback(_stop, worker)
        options = ["--port", "0", "--admin-port", "0", "--max-queue", "4096", "--text-threads", "1"]
        gateway = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway", *shared, *options, stderr=PIPE
        )
        stack.push_async_callback(_stop, gateway)
        async with asyncio.timeout(START_TIMEOUT_S):
            admin_port = await _port(gateway, "admin.listening")
            port = await _port(gateway, "gateway.listening")
            reading = asyncio.create_task(_drain(gateway))
            stack.callback(reading.cancel)
            await _until_ready(admin_port)
        yield Front(gateway, worker, port, made_at)


def measure(*, num_streams: int = 256, max_tokens: int = 200, interval_s: float = 0.0) -> FrontFigures:
    """Return the figures of one run, after a short one that warms everything up."""

    async def run() -> FrontFigures:
        async with front(interval_s=interval_s) as running:
            await running.load(num_streams, max(1, max_tokens // 10))
            return await running.load(num_streams, max_tokens)

    return asyncio.run(run())


def _cpu_s(process: Process) -> float:
    """Return the CPU seconds that a running process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def _port(process: Process, event: str) -> int:
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if event in line:
            return int(json.loads(line)["port"]) if line.startswith("{") else int(line.rsplit("port=", 1)[1])
    raise RuntimeError(f"The gateway ended before it said {event}.")


async def _drain(process: Process) -> None:
    assert process.stderr is not None
    while await process.stderr.readline():
        continue


async def _until_ready(admin_port: int) -> None:
    async with aiohttp.ClientSession() as client:
        while True:
            async with client.get(f"http://127.0.0.1:{admin_port}/readyz") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.05)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
