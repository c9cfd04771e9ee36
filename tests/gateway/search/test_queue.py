"""Which files are indexed next: projects take turns, and none has all tasks."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.gateway.file_services import FileServices
from services.gateway.search.ingestion import Ingestion
from services.gateway.search.operations import QUEUE
from services.gateway.search.stores import NewStoredFile, new_store
from services.gateway.store.changes import Create
from services.gateway.store.kinds import FILE, Ref
from services.gateway.store.leases import EndLease
from tests.gateway.search.searching import library

WAIT_S = 30.0


@dataclass
class Turns:
    """Projects of the files that were taken, in order; ``go_on`` lets those of the large project end."""

    files: FileServices
    taken: list[str] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def add(self, project: str, num_files: int) -> None:
        objects = self.files.storage.of(project).objects
        refs = [FILE.new_ref() for _ in range(num_files)]
        await objects.apply([Create(ref, {"filename": "a.txt"}) for ref in refs])
        new = [NewStoredFile(ref.id) for ref in refs]
        _, operations = await new_store(self.files.storage, project, 0, {}, new)
        await objects.apply(operations)

    async def run(self, project: str, ref: Ref) -> None:
        self.taken.append(project)
        await self.files.storage.of(project).objects.apply([EndLease(QUEUE, ref)])
        if project == "large":
            await self.go_on.wait()


@pytest.fixture
async def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turns]:
    async with library(tmp_path, ingestion_tasks=2) as lib:
        made = Turns(lib.w.gateway.files)
        monkeypatch.setattr(Ingestion, "run", lambda _, project, ref: made.run(project, ref))
        yield made


async def test_projects_take_turns(turns: Turns) -> None:
    await turns.add("many", 5)
    await turns.add("few", 1)
    tried = [await turns.files.ingestions.sweep() for _ in range(6)]

    assert tried == [2, 1, 1, 1, 1, 0]
    assert sorted(turns.taken[:2]) == ["few", "many"]


async def test_a_project_with_large_files_leaves_a_task_to_others(turns: Turns) -> None:
    await turns.add("large", 3)
    first = asyncio.create_task(turns.files.ingestions.sweep())
    async with asyncio.timeout(WAIT_S):
        while not turns.taken:
            await asyncio.sleep(0.005)
    await turns.add("small", 2)
    async with asyncio.timeout(WAIT_S):
        tried = [await turns.files.ingestions.sweep() for _ in range(3)]
    turns.go_on.set()
    await first

    assert tried == [1, 1, 0]
    assert turns.taken == ["large", "small", "small"]
    assert await turns.files.ingestions.sweep() == 1
