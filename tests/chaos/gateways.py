"""Gateway processes over one Redis, which tests kill and stop, and workers: real ones, or one that plays scripts."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.redis_registry import RedisRegistry
from services.telemetry.clock import SystemClock
from tests.e2e.harness import Cluster
from tests.e2e.processes import WorkerProcess, spawn
from tests.gateway.decode_server import SECRET, serving
from tests.gateway.runs.client import Seen, parsed
from tests.gateway.twins import END_ID, DecodeTwin, Script, card, member, raw_tokenizer, tokens

TIMEOUT_S = 180.0
POLL_S = 0.05
OPTIONS: dict[str, object] = {
    "port": 0,
    "admin_port": 0,
    "log_json": True,
    "run_lease_s": 2,
    "run_sweep_s": 0.3,
    "drain_timeout_s": 5,
    "max_queue": 1000,
    "max_project_queue": 1000,
}
SAID = "hello world, what is the capital of France? Paris is the capital of France. " * 3
"""What the worker says that plays scripts."""
_MEMBER_LEASE_S = 3600


@dataclass
class Gateway:
    """A gateway process and a client of it."""

    process: WorkerProcess
    client: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> Any:
        return (await self.client.post(path, json=body)).raise_for_status().json()

    async def get(self, path: str, **params: Any) -> Any:
        return (await self.client.get(path, params=params)).raise_for_status().json()

    async def thread(self, text: str) -> str:
        return str((await self.post("/v1/threads", messages=[{"role": "user", "content": text}]))["id"])

    @asynccontextmanager
    async def stream(self, method: str, path: str, **options: Any) -> AsyncIterator[AsyncIterator[Seen]]:
        async with self.client.stream(method, path, **options) as response:
            response.raise_for_status()
            yield _events(response)

    async def events(self, path: str, after: int) -> list[Seen]:
        async with self.stream("GET", f"{path}/events", params={"starting_after": after}) as events:
            return [event async for event in events]

    async def settled(self, path: str) -> Any:
        """The run at a path, once nobody works on it."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                run = await self.get(path)
                if run["status"] not in ("queued", "in_progress"):
                    return run
                await asyncio.sleep(POLL_S)

    async def messages(self, thread: str) -> list[Any]:
        """All messages of a thread, oldest first."""
        found: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = await self.get(f"/v1/threads/{thread}/messages", order="asc", limit=100, **cursor)
            found += page["data"]
            if not page["has_more"]:
                return found
            cursor = {"after": page["last_id"]}


def text_in(message: Any) -> str:
    """The text of a message."""
    return "".join(part["text"]["value"] for part in message["content"])


async def _events(response: httpx.Response) -> AsyncIterator[Seen]:
    """The events of a stream as they come; asserts that it ends as streams end."""
    text = ""
    async for chunk in response.aiter_text():
        *blocks, text = (text + chunk).split("\n\n")
        for block in blocks:
            if block == "event: done\ndata: [DONE]":
                return
            if not block.startswith(":"):
                yield parsed(block)
    raise AssertionError("the stream was cut")


@dataclass
class StoredCluster:
    """Redis and workers; gateways come and go."""

    folder: Path
    redis: EmbeddedRedis
    secret_file: Path
    twin: DecodeTwin | None
    """The worker that plays scripts; None if the workers are real."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def hold(self, num_characters: int) -> None:
        """Let the next answer stop after so many characters until ``go_on``; real workers are slow enough anyway."""
        if self.twin is None:
            return
        spoken = tokens(SAID)
        num_tokens = next(n for n in range(len(spoken)) if len(raw_tokenizer().decode(spoken[:n])) >= num_characters)
        self.twin.release.clear()
        self.twin.first = [Script([*spoken, END_ID], hang_after=num_tokens)]

    def go_on(self) -> None:
        """Let all answers go on."""
        if self.twin is not None:
            self.twin.release.set()

    @asynccontextmanager
    async def gateways(self, number: int = 2) -> AsyncIterator[list[Gateway]]:
        """So many gateways that know the workers, and no others."""
        started = [self._spawn() for _ in range(number)]
        try:
            async with AsyncExitStack() as stack:
                yield [await stack.enter_async_context(_client_of(process)) for process in started]
        finally:
            for process in started:
                process.kill()

    def _spawn(self) -> WorkerProcess:
        log = self.folder / f"gateway-{next(self._numbers)}.log"
        return spawn("gateway", {**OPTIONS, "redis_url": self.redis.url, "secret_file": self.secret_file}, log)


@asynccontextmanager
async def _client_of(process: WorkerProcess) -> AsyncIterator[Gateway]:
    listening = await process.wait_event("gateway.listening")
    url, limits = f"http://127.0.0.1:{listening['port']}", httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        async with asyncio.timeout(TIMEOUT_S):
            while not (await client.get("/v1/models")).raise_for_status().json()["data"]:
                await asyncio.sleep(POLL_S)
        yield Gateway(process, client)


@asynccontextmanager
async def scripted_cluster(folder: Path) -> AsyncIterator[StoredCluster]:
    """Redis, and one worker in this process that says ``SAID``."""
    secret_file, twin = folder / "secret", DecodeTwin()
    secret_file.write_bytes(SECRET)
    secret_file.chmod(0o600)
    twin.default = Script([*tokens(SAID), END_ID])
    async with EmbeddedRedis(folder) as redis, serving(twin) as address:
        registry = RedisRegistry(redis.url, SECRET, SystemClock(), lease_s=_MEMBER_LEASE_S, timeout_s=30.0)
        await registry.join(replace(member("d1"), address=address), card())
        await registry.close()
        yield StoredCluster(folder, redis, secret_file, twin)


@asynccontextmanager
async def real_cluster(folder: Path) -> AsyncIterator[StoredCluster]:
    """Redis, a prefill and a decode worker."""
    async with Cluster(folder) as cluster:
        prefill, decode = await cluster.start("prefill", "decode", kv_mib=120)
        await cluster.wait_warm(decode, prefill)
        yield StoredCluster(folder, cluster.redis, cluster.secret_file, None)
