"""A cluster of processes whose gRPC is mutual TLS: every service has a certificate, and who has none gets nowhere."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.engine.weights.sources import ModelFolder
from services.rpc.channel import Channels
from tests.e2e.harness import Cluster
from tests.e2e.processes import REPOSITORY, WorkerProcess, spawn
from tests.rpc.authority import Authority, Files

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(600)]
KV_MIB = 64
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Scene:
    """Two workers with certificates, and what a gateway needs to find them."""

    cluster: Cluster
    authority: Authority
    prefill: WorkerProcess
    decode: WorkerProcess

    def spawn_gateway(self, name: str, **tls: object) -> WorkerProcess:
        options: dict[str, object] = {
            **{"port": 0, "admin_port": 0, "log_json": True, "redis_url": self.cluster.redis.url},
            **{"secret_file": self.cluster.secret_file, "require_prefill": True, "queue_timeout_s": 1},
        }
        gateway = spawn("gateway", options | tls, self.cluster.folder / f"{name}.log")
        self.cluster.workers.append(gateway)
        return gateway

    def tandem_drain(self, *options: str) -> str:
        """What ``tandem drain`` says."""
        known = ["--redis-url", self.cluster.redis.url, "--secret-file", str(self.cluster.secret_file)]
        command = [sys.executable, "-m", "services.cli", "drain", *options, *known]
        return subprocess.run(
            command, capture_output=True, timeout=DEADLINE_S, cwd=REPOSITORY, check=True, text=True
        ).stdout

    def tandem_status(self, *options: str) -> list[dict[str, Any]]:
        """What ``tandem status`` says of each worker."""
        known = ["--redis-url", self.cluster.redis.url, "--secret-file", str(self.cluster.secret_file), "--json"]
        command = [sys.executable, "-m", "services.cli", "status", *known, *options]
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, cwd=REPOSITORY, check=True)
        statuses: list[dict[str, Any]] = json.loads(done.stdout)
        return statuses


def tls_options(files: Files) -> dict[str, object]:
    ca_file, cert_file, key_file = files.paths
    return {"tls_ca_file": ca_file, "tls_cert_file": cert_file, "tls_key_file": key_file}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def scene(bfloat16_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.at(folder / "authority")
    async with Cluster(folder, "bfloat16") as cluster:
        cluster.channels = Channels(cluster.secret, authority.issue("test").load())
        started = [
            cluster.spawn(role, kv_mib=KV_MIB, transport="tcp", **local, **tls_options(authority.issue(role)))
            for role, local in (("prefill", {}), ("decode", {"local_prefill_tokens": 0, "max_local_prefill_tokens": 0}))
        ]
        prefill, decode = await cluster.join(started)
        await cluster.wait_warm(decode, prefill)
        yield Scene(cluster, authority, prefill, decode)
        await cluster.channels.close()


async def chat(gateway: WorkerProcess) -> httpx.Response:
    port = int((await gateway.wait_event("gateway.listening"))["port"])
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello to everybody."}], "max_tokens": 8}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client:
        async with asyncio.timeout(DEADLINE_S):
            while not (await client.get("/v1/models")).json().get("data"):
                await asyncio.sleep(0.05)
        body["model"] = (await client.get("/v1/models")).json()["data"][0]["id"]
        return await client.post("/v1/chat/completions", json=body)


async def test_a_chat_goes_from_gateway_to_decode_to_prefill(scene: Scene) -> None:
    answer = await chat(scene.spawn_gateway("gateway", **tls_options(scene.authority.issue("gateway"))))
    assert answer.status_code == 200
    proof = answer.json()["usage"]["tandem"]
    assert (proof["path"], proof["verified"], proof["prefill"]) == ("pd", True, scene.prefill.member_id)


async def test_tandem_status_asks_with_a_certificate(scene: Scene) -> None:
    options = scene.authority.issue("operator").options
    statuses = await asyncio.to_thread(scene.tandem_status, *options)
    assert [status["state"] for status in statuses] == ["serving", "serving"]
    assert all(status["ledger"] for status in statuses)


async def test_without_one_it_says_why_nobody_answers(scene: Scene) -> None:
    statuses = await asyncio.to_thread(scene.tandem_status)
    assert [status["state"] for status in statuses] == ["no answer: handshake_failed"] * 2


async def test_a_gateway_without_a_certificate_serves_nobody_and_logs_why(scene: Scene) -> None:
    gateway = scene.spawn_gateway("without")
    answer = await chat(gateway)
    assert answer.status_code in (502, 503)
    assert "handshake_failed" in gateway.log.read_text() + answer.text


async def test_a_gateway_of_another_authority_serves_nobody(scene: Scene, tmp_path: Path) -> None:
    stranger = Authority.at(tmp_path)
    answer = await chat(scene.spawn_gateway("stranger", **tls_options(stranger.issue("gateway"))))
    assert answer.status_code in (502, 503)


async def test_tandem_drain_asks_with_a_certificate(scene: Scene) -> None:
    options = scene.authority.issue("operator").options
    said = await asyncio.to_thread(scene.tandem_drain, "--address", scene.prefill.address, *options)
    assert said == f"{scene.prefill.address}: drained\n"
