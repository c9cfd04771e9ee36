"""Exports of one gateway's objects, imports into another's, and all that clients can read of them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from services.gateway.moving.destination import Destination
from services.gateway.moving.export import Exporter
from services.gateway.moving.lines import Line, lines_of, parsed
from services.gateway.moving.restoring import Importer, Restored
from tests.gateway.runs.test_file_search import CONTENT
from tests.gateway.twins import World

PROJECT = "default"
RETENTION_S = 3600


async def exported(w: World, folder: Path | None, project: str = PROJECT) -> bytes:
    """All lines of a project; the bytes of its files go to ``folder``."""
    exporter = Exporter(w.gateway.files.storage.of(project), folder)
    return b"".join([line.encoded() async for line in exporter.lines(created_at=5, tandem="1.2.3")])


def importer(w: World, folder: Path | None = None, project: str = PROJECT, **options: Any) -> Importer:
    into = Destination(w.gateway.files.storage.of(project), folder, int(w.clock.wall()), RETENTION_S)
    return Importer(into, **options)


async def imported(
    w: World, data: bytes, folder: Path | None = None, project: str = PROJECT, **options: Any
) -> Restored:
    await w.gateway.files.storage.register(project)
    return await importer(w, folder, project, **options).read(lines_of(io.BytesIO(data)))


def lines(*objects: Any) -> bytes:
    return b"".join(orjson.dumps(each) + b"\n" for each in objects)


def objects_in(data: bytes) -> list[Line]:
    return [parsed(text) for _, text in lines_of(io.BytesIO(data))]


def kinds(data: bytes) -> list[str]:
    return [line.kind for line in objects_in(data)]


class Reader:
    """Reads what a project has, as a client of its gateway does."""

    def __init__(self, w: World, headers: dict[str, str] | None = None) -> None:
        self._w = w
        self._headers = headers or {}

    async def get(self, path: str, **params: Any) -> Any:
        response = await self._w.client.get(path, params=params, headers=self._headers)
        assert response.status_code == 200, response.text
        return response.json()

    async def data(self, path: str, **params: Any) -> list[Any]:
        """A list, oldest first."""
        return list((await self.get(path, order="asc", limit=100, **params))["data"])

    async def everything(self, threads: Sequence[str], responses: Sequence[str]) -> dict[str, Any]:
        """All that clients see of a project; threads and responses are in no list."""
        found: dict[str, Any] = {name: await self.data(f"/v1/{name}") for name in ("files", "vector_stores")}
        found["assistants"] = await self.data("/v1/assistants")
        for file in found["files"]:
            response = await self._w.client.get(f"/v1/files/{file['id']}/content", headers=self._headers)
            found[f"bytes of {file['id']}"] = response.content
        for store in found["vector_stores"]:
            found[f"files of {store['id']}"] = await self.data(f"/v1/vector_stores/{store['id']}/files")
        for thread in threads:
            found |= await self._thread(thread)
        for response_id in responses:
            path = f"/v1/responses/{response_id}"
            found[path] = await self.get(path, **{"include[]": "file_search_call.results"})
            found[f"{path}/input_items"] = await self.data(f"{path}/input_items")
        return found

    async def _thread(self, thread: str) -> dict[str, Any]:
        path, conversation = f"/v1/threads/{thread}", f"/v1/conversations/{thread.replace('thread_', 'conv_')}"
        runs = await self.data(f"{path}/runs")
        steps = {f"{path}/runs/{run['id']}/steps": {"include[]": CONTENT} for run in runs}
        return {
            path: await self.get(path),
            f"{path}/messages": await self.data(f"{path}/messages"),
            f"{path}/runs": runs,
            conversation: await self.get(conversation),
            f"{conversation}/items": await self.data(f"{conversation}/items"),
            **{steps_path: await self.data(steps_path, **params) for steps_path, params in steps.items()},
            **{f"messages of {run['id']}": await self.data(f"{path}/messages", run_id=run["id"]) for run in runs},
        }
