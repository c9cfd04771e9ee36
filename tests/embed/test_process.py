"""An embedding worker as a process, with the real model, asked by a gateway: texts that mean the same are alike."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests.conftest import CACHE_DIR
from tests.gateway.documents.samples import docx, html, pdf
from tests.gateway.process import Running, gateway

WAIT_S = 120.0
SENTENCES = ("A man is eating food.", "A man eats something.", "The girl is carrying a baby.")
LIBRARY = {
    "whales.pdf": pdf("The blue whale is the largest animal that has ever lived."),
    "bread.docx": docx("Sourdough bread rises because wild yeast makes gas."),
    "moon.html": html("<p>The moon causes the tides of the sea.</p>"),
    "rust.md": b"# Rust\n\nIron turns into rust when it meets water and air.",
}
QUESTIONS = {
    "Which creature is the biggest?": "whales.pdf",
    "Why does dough grow?": "bread.docx",
    "What makes the ocean go up and down?": "moon.html",
    "Why does metal corrode?": "rust.md",
}


@dataclass
class Served:
    gateway: Running
    worker: Process
    client: openai.AsyncOpenAI


@asynccontextmanager
async def served(folder: Path, *options: str) -> AsyncIterator[Served]:
    async with gateway(folder, *options) as running:
        command = [sys.executable, "-m", "services.embed", "--redis-url", running.redis.url]
        command += ["--secret-file", str(folder / "secret"), "--cache-dir", str(CACHE_DIR), "--niceness", "0"]
        worker = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=dict(os.environ))
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)
        try:
            async with client:
                yield Served(running, worker, client)
        finally:
            if worker.returncode is None:
                worker.kill()
            await worker.communicate()


async def until_served(running: Running) -> None:
    async with asyncio.timeout(WAIT_S), running.client() as client:
        while "all-minilm-l6-v2" not in (await client.get("/v1/models")).text:
            await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
async def test_files_are_found_by_what_they_mean(tmp_path: Path) -> None:
    aliases = '{"text-embedding-3-small": "all-minilm-l6-v2"}'
    async with served(tmp_path, "--model-aliases", aliases, "--embedding-timeout-s", str(WAIT_S)) as s:
        await until_served(s.gateway)
        embedded = await s.client.embeddings.create(model="text-embedding-3-small", input=list(SENTENCES))
        one, other, third = ([*each.embedding] for each in embedded.data)
        assert len(one) == 384
        assert _product(one, other) == pytest.approx(0.875, abs=0.005)  # as published for these sentences
        assert _product(one, third) < 0.1

        files = [(await s.client.files.create(file=item, purpose="assistants")).id for item in LIBRARY.items()]
        store = await s.client.vector_stores.create(name="library")
        batch = await s.client.vector_stores.file_batches.create_and_poll(store.id, file_ids=files, poll_interval_ms=50)
        assert (batch.status, batch.file_counts.completed) == ("completed", len(LIBRARY))
        for question, name in QUESTIONS.items():
            found = await s.client.vector_stores.search(store.id, query=question, max_num_results=2)
            assert found.data[0].filename == name, question

        s.worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(s.worker.wait(), WAIT_S) == 0


def _product(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_a_worker_without_a_model_waits_for_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.embed", "--embedding-model", str(tmp_path / "none")]
    worker = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=dict(os.environ))
    try:
        assert worker.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while b"embedding.off" not in (line := await worker.stderr.readline()):
                assert line, "the worker ended"
        assert b"There is no model" in line
        worker.send_signal(signal.SIGTERM)
        await asyncio.wait_for(worker.communicate(), WAIT_S)
        assert worker.returncode == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
