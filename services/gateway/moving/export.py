"""Writes a project's objects as lines, parents before children, without holding more than a page of them."""

from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import orjson

from services.errors import ConfigurationError, ObjectNotFound
from services.gateway.files.storage import ProjectFiles, StoredBytes
from services.gateway.jobs.events import ENDS
from services.gateway.moving.found import found_json
from services.gateway.moving.lines import Line, begin_line, end_line
from services.gateway.responses.items import conversation_of
from services.gateway.responses.state import ResponseState
from services.gateway.runs.binding import Binding
from services.gateway.runs.search_calls import Found, StepNotes
from services.gateway.search.stores import StoredFileSource, VectorStores
from services.gateway.store.kinds import (
    ASSISTANT,
    FILE,
    FILE_BATCH,
    INPUT_ITEM,
    ITEM,
    MESSAGE,
    RESPONSE,
    RUN,
    STEP,
    STORED_FILE,
    THREAD,
    VECTOR_STORE,
    Kind,
    Ref,
)
from services.gateway.store.records import Query, Record
from services.gateway.store.schema import SCHEMA_VERSION

_PAGE = 100

Lines = AsyncGenerator[Line, None]


class Exporter:
    """Reads the objects of one project; what others change meanwhile is there as it was or as it is now."""

    def __init__(self, files: ProjectFiles, folder: Path | None) -> None:
        """``folder`` gets the bytes of files, each under the id of the file; it is made if there are any."""
        self._files = files
        self._objects = files.objects
        self._stores = VectorStores(files)
        self._folder = folder
        self.exported: Counter[str] = Counter()
        """Objects by kind."""
        self.left_out: Counter[str] = Counter()
        """Objects by kind that somebody still worked on."""

    async def lines(self, *, created_at: int, tandem: str) -> Lines:
        """Yield all lines; ``created_at`` and ``tandem`` (a version) are told in the first one.

        Raises:
            ConfigurationError: there are files, and no folder for their bytes.
            OSError: the bytes of a file cannot be written.
            StateUnavailable: Redis cannot be reached.
        """
        project = self._files.project
        yield begin_line(project=project, created_at=created_at, tandem=tandem, schema_version=SCHEMA_VERSION)
        for section in (self._of_files, self._of_stores, self._of_assistants, self._of_threads, self._of_responses):
            async for line in section():
                self.exported[line.kind] += 1
                yield line
        yield end_line(self.exported.total())

    async def _of_files(self) -> Lines:
        async for record in self._all(FILE, with_private=True):
            try:
                await self._save(record)
            except ObjectNotFound:  # deleted meanwhile
                continue
            yield Line("file", record.body)

    async def _of_stores(self) -> Lines:
        async for record in self._all(VECTOR_STORE):
            [shown] = await self._stores.shown([record])
            yield Line("vector_store", shown)
            async for batch in self._all(FILE_BATCH, record.ref):
                [shown] = await self._stores.shown_batches(record.ref, [batch])
                yield Line("vector_store.files_batch", shown)
            async for stored in self._all(STORED_FILE, record.ref, with_private=True):
                batch_id = StoredFileSource.from_bytes(stored.private).batch
                yield Line("vector_store.file", stored.body, kept={} if batch_id is None else {"batch": batch_id})

    async def _of_assistants(self) -> Lines:
        async for record in self._all(ASSISTANT):
            yield Line("assistant", record.body)

    async def _of_threads(self) -> Lines:
        async for thread in self._all(THREAD):
            yield Line("thread", thread.body)
            async for record in self._all(MESSAGE, thread.ref, also=(ITEM,), with_private=True):
                if record.ref.kind is ITEM:
                    parent = conversation_of(thread.ref).id
                    yield Line("conversation.item", record.body, parent, _kept_of_item(record))
                elif self._has_ended(record, "thread.message"):
                    yield Line("thread.message", record.body, kept=_kept_of_message(record))
            async for run in self._all(RUN, thread.ref):
                if not self._has_ended(run, "thread.run"):
                    continue
                yield Line("thread.run", run.body)
                async for step in self._all(STEP, run.ref, with_private=True):
                    yield Line("thread.run.step", step.body, kept=_kept_of_step(step))

    async def _of_responses(self) -> Lines:
        async for record in self._all(RESPONSE, with_private=True):
            if not (record.body["store"] and self._has_ended(record, "response")):
                continue
            found = ResponseState.from_bytes(record.private).found
            kept: dict[str, Any] = {
                "input": [item.body async for item in self._all(INPUT_ITEM, record.ref)],
                "found": {item_id: found_json(each) for item_id, each in found.items()},
                "expires_at": await self._files.ends_at(record.ref),
            }
            yield Line("response", record.body, kept=kept)

    async def _all(
        self, kind: Kind, parent: Ref | None = None, *, also: tuple[Kind, ...] = (), with_private: bool = False
    ) -> AsyncGenerator[Record, None]:
        """Yield a list, oldest first; it ends when its parent is deleted."""
        query = Query(kind, parent, limit=_PAGE, order="asc", with_private=with_private, also=also)
        try:
            async for record in self._objects.each(query):
                yield record
        except ObjectNotFound:
            return

    def _has_ended(self, record: Record, kind: str) -> bool:
        """Return whether nobody works on an object any more; those that somebody does are counted."""
        if record.body["status"] in ENDS:
            return True
        self.left_out[kind] += 1
        return False

    async def _save(self, record: Record) -> None:
        """Write the bytes of a file into the folder.

        Raises:
            ObjectNotFound: it was deleted meanwhile.
            ConfigurationError: there is no folder.
        """
        if self._folder is None:
            raise ConfigurationError("the project has files; name a folder for their bytes: --files-folder FOLDER")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / record.ref.id
        scratch = path.with_name(f"{path.name}.part")
        scratch.touch(mode=0o600)
        try:
            with scratch.open("wb") as target:
                async for data in self._files.blobs.read(record.ref, StoredBytes.from_bytes(record.private).num_chunks):
                    target.write(data)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def _kept_of_message(record: Record) -> Mapping[str, Any]:
    """Return what led to an answer; its token ids are made again."""
    binding = Binding.from_bytes(record.private) if record.private is not None else None
    if binding is None or not (binding.lead or binding.sources):
        return {}
    return {"lead": list(binding.lead), "sources": dict(binding.sources)}


def _kept_of_step(record: Record) -> Mapping[str, Any]:
    searches = StepNotes.from_bytes(record.private).searches
    return {"searches": {call_id: found_json(found) for call_id, found in searches.items()}} if searches else {}


def _kept_of_item(record: Record) -> Mapping[str, Any]:
    """Return what a search found; the token ids of a call are made again."""
    if record.body["type"] != "file_search_call" or record.private is None:
        return {}
    return {"found": found_json(Found.of(orjson.loads(record.private)))}
