"""A gateway with a twin of an embedding worker, and files in its vector stores."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.telemetry.clock import ManualClock
from tests.gateway.apis.stored import stored_world
from tests.gateway.embedding_twin import EmbeddingTwin, embedding_card, embedding_member
from tests.gateway.twins import World

SMALL = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}}


class WaitingClock(ManualClock):
    """A clock whose sleepers wait until a test moves it past their end; less than a second passes by itself."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        super().__init__(start_s)
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    @property
    def is_awaited(self) -> bool:
        """Whether somebody sleeps."""
        return bool(self._sleepers)

    async def sleep(self, delay_s: float) -> None:
        if delay_s < 1:
            await super().sleep(delay_s)
            return
        wake = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now() + delay_s, wake))
        await wake

    def advance(self, delay_s: float) -> None:
        super().advance(delay_s)
        for end_s, wake in self._sleepers:
            if end_s <= self.now() and not wake.done():
                wake.set_result(None)
        self._sleepers = [(end_s, wake) for end_s, wake in self._sleepers if not wake.done()]


@dataclass
class Library:
    """What tests of vector stores work with."""

    w: World
    embedder: EmbeddingTwin

    async def post(self, path: str, body: Any = None) -> dict[str, Any]:
        response = await self.w.post(path, {} if body is None else body)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        response = await self.w.client.get(path, params=params)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    async def file(self, data: bytes | str = "hello world", name: str = "a.txt") -> str:
        content = data.encode() if isinstance(data, str) else data
        form = {"purpose": "assistants"}
        response = await self.w.client.post("/v1/files", files={"file": (name, content)}, data=form)
        return str(response.json()["id"])

    async def store(self, *file_ids: str, **fields: Any) -> str:
        made = await self.post("/v1/vector_stores", {"file_ids": list(file_ids), **fields})
        return f"/v1/vector_stores/{made['id']}"

    async def indexed(self, *texts: str, **fields: Any) -> tuple[str, list[str]]:
        """A store with a file for each text, indexed, and the ids of the files."""
        file_ids = [await self.file(text, f"{number}.txt") for number, text in enumerate(texts)]
        store = await self.store(*file_ids, **fields)
        await self.ingest()
        return store, file_ids

    async def ingest(self) -> None:
        """Index whatever waits."""
        while await self.w.gateway.files.ingestions.sweep():
            pass

    async def search(self, store: str, query: Any, **fields: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.post(f"{store}/search", {"query": query, **fields}))["data"]
        return found


@asynccontextmanager
async def library(folder: Path, **changes: Any) -> AsyncIterator[Library]:
    """A gateway over a real Redis; ``changes`` are settings."""
    embedder = EmbeddingTwin()
    async with stored_world(folder, embedder=embedder, clock=WaitingClock(), **changes) as w:
        await w.join(embedding_member(), embedding_card())
        yield Library(w, embedder)
