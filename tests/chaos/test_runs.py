"""Gateways die or stand still in the middle of a streamed run: another goes on, and nobody can tell from the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.engine.weights.sources import ModelFolder
from tests.chaos.conftest import Say
from tests.e2e.harness import Cluster
from tests.e2e.processes import WorkerProcess, spawn
from tests.gateway.runs.client import Seen, names, parsed, text_of

pytestmark = [pytest.mark.chaos_long, pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]
QUESTION = "Tell me a long story about a fox who wants to cross a river."
NUM_TOKENS = 256
TIMEOUT_S = 180.0
MOMENTS = (1, 8, 30)
"""Deltas that a client has seen when its gateway is hit."""
OPTIONS: dict[str, object] = {
    "port": 0,
    "admin_port": 0,
    "log_json": True,
    "run_lease_s": 2,
    "run_sweep_s": 0.3,
    "drain_timeout_s": 5,
}


@dataclass
class Gateway:
    """A gateway process and a client of it."""

    process: WorkerProcess
    client: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> Any:
        return (await self.client.post(path, json=body)).raise_for_status().json()

    async def thread(self) -> str:
        return str((await self.post("/v1/threads", messages=[{"role": "user", "content": QUESTION}]))["id"])

    @asynccontextmanager
    async def stream(self, method: str, path: str, **options: Any) -> AsyncIterator[AsyncIterator[Seen]]:
        async with self.client.stream(method, path, **options) as response:
            response.raise_for_status()
            yield _events(response)

    async def events(self, path: str, after: int) -> list[Seen]:
        async with self.stream("GET", f"{path}/events", params={"starting_after": after}) as events:
            return [event async for event in events]

    async def settled(self, path: str) -> Any:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                run = (await self.client.get(path)).raise_for_status().json()
                if run["status"] not in ("queued", "in_progress"):
                    return run
                await asyncio.sleep(0.05)


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
class Streets:
    """A cluster with two gateways, and what a run looks like that nothing happens to."""

    cluster: Cluster
    assistant: str
    undisturbed: list[Seen]

    @asynccontextmanager
    async def gateways(self) -> AsyncIterator[tuple[Gateway, Gateway]]:
        """Two gateways and no others."""
        async with _gateway(self.cluster) as first, _gateway(self.cluster) as second:
            yield first, second


@asynccontextmanager
async def _gateway(cluster: Cluster) -> AsyncIterator[Gateway]:
    log = cluster.folder / f"gateway-{len(cluster.workers)}.log"
    options = {**OPTIONS, "redis_url": cluster.redis.url, "secret_file": cluster.secret_file}
    process = spawn("gateway", options, log)
    cluster.workers.append(process)
    listening = await process.wait_event("gateway.listening")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening['port']}", timeout=TIMEOUT_S) as client:
        async with asyncio.timeout(TIMEOUT_S):
            while not (await client.get("/v1/models")).raise_for_status().json()["data"]:
                await asyncio.sleep(0.05)
        try:
            yield Gateway(process, client)
        finally:
            process.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def streets(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Streets]:
    async with Cluster(tmp_path_factory.mktemp("runs")) as cluster:
        prefill, decode = await cluster.start("prefill", "decode", kv_mib=120)
        await cluster.wait_warm(decode, prefill)
        async with _gateway(cluster) as gateway:
            name = (await gateway.client.get("/v1/models")).json()["data"][0]["id"]
            assistant = (await gateway.post("/v1/assistants", model=name, temperature=0))["id"]
            undisturbed, _ = await _begun(gateway, assistant, num_deltas=None)
        assert text_of(undisturbed) and names(undisturbed)[-1] in ("run.completed", "run.incomplete")
        yield Streets(cluster, assistant, undisturbed)


async def _begun(gateway: Gateway, assistant: str, *, num_deltas: int | None) -> tuple[list[Seen], str]:
    """What a client has seen of a new run when so many deltas came, and the path of the run."""
    thread, seen = await gateway.thread(), []
    body = {"assistant_id": assistant, "stream": True, "max_completion_tokens": NUM_TOKENS}
    async with gateway.stream("POST", f"/v1/threads/{thread}/runs", json=body) as events:
        async for event in events:
            seen.append(event)
            if num_deltas is not None and names(seen).count("message.delta") >= num_deltas:
                break
    return seen, f"/v1/threads/{thread}/runs/{seen[0].data['id']}"


def _shape(events: list[Seen]) -> list[str]:
    told = names(events)
    return [name for place, name in enumerate(told) if name != "message.delta" or told[place - 1] != name]


def _assert_undisturbed(streets: Streets, events: list[Seen], run: Any) -> None:
    expected = streets.undisturbed
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert _shape(events) == _shape(expected)
    assert text_of(events) == text_of(expected)
    assert run == events[-1].data
    assert run["usage"]["completion_tokens"] == expected[-1].data["usage"]["completion_tokens"]


@pytest.mark.parametrize("num_deltas", MOMENTS)
async def test_a_killed_gateway_costs_no_event(streets: Streets, num_deltas: int, say: Say) -> None:
    async with streets.gateways() as (first, second):
        seen, path = await _begun(first, streets.assistant, num_deltas=num_deltas)
        first.process.kill()
        rest = await second.events(path, seen[-1].number)
        run = await second.settled(path)

        _assert_undisturbed(streets, [*seen, *rest], run)
        assert await second.events(path, 0) == [*seen, *rest]
        assert second.process.events("run.taken", run=run["id"])
        say(f"killed after {len(seen)} events, {len(rest)} came from another gateway")


@pytest.mark.parametrize("num_deltas", MOMENTS)
async def test_a_gateway_that_wakes_up_writes_nothing_more(streets: Streets, num_deltas: int, say: Say) -> None:
    async with streets.gateways() as (first, second):
        seen, path = await _begun(first, streets.assistant, num_deltas=num_deltas)
        first.process.pause()
        run = await second.settled(path)
        log = await second.events(path, 0)
        first.process.resume()
        await first.process.wait_until(
            lambda: bool(
                first.process.events("run.left", run=run["id"]) + first.process.events("run.lost", run=run["id"])
            ),
            "end of its work on the run",
        )

        _assert_undisturbed(streets, log, run)
        assert log[: len(seen)] == seen
        assert await first.events(path, 0) == await second.events(path, 0) == log
        say(f"stopped after {len(seen)} events of {len(log)}")


async def test_a_leaving_gateway_hands_its_run_over(streets: Streets) -> None:
    async with streets.gateways() as (first, second):
        seen, path = await _begun(first, streets.assistant, num_deltas=2)
        assert await first.process.terminate() == 0
        rest = await second.events(path, seen[-1].number)

        _assert_undisturbed(streets, [*seen, *rest], await second.settled(path))


async def test_the_moments_are_within_the_run(streets: Streets) -> None:
    assert names(streets.undisturbed).count("message.delta") > max(MOMENTS)
