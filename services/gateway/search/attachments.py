"""Files that messages bring for file search: they go into the vector store of the thread, in one change with them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from services.errors import Conflict, JobEnded, LeaseLost, ObjectRefused
from services.gateway.files.storage import FileStorage, ProjectFiles
from services.gateway.search.stores import NewStoredFile, VectorStores, new_store
from services.gateway.store.changes import Operation, Update
from services.gateway.store.kinds import FILE, VECTOR_STORE, Ref
from services.gateway.store.records import Record
from services.telemetry.clock import Clock

THREAD_STORE_EXPIRY: Mapping[str, Any] = {"anchor": "last_active_at", "days": 7}
"""When stores end that are made for a thread."""
_TOOL = "file_search"
_MAX_ATTEMPTS = 20

Body = Mapping[str, Any]


def attached_files(messages: Iterable[Body]) -> list[str]:
    """Return the ids of the files that messages bring for file search, each once."""
    attachments = (each for message in messages for each in message["attachments"] or ())
    brought = (each["file_id"] for each in attachments if any(tool["type"] == _TOOL for tool in each["tools"]))
    return list(dict.fromkeys(brought))


class Attachments:
    """Brings files into the vector stores of threads."""

    def __init__(self, storage: FileStorage, clock: Clock, on_added: Callable[[], None]) -> None:
        """``on_added`` is called when there are files to be indexed."""
        self._storage = storage
        self._clock = clock
        self._on_added = on_added

    async def bring(
        self,
        project: str,
        thread: Ref,
        messages: Sequence[Body],
        make: Callable[[Sequence[Operation]], Awaitable[None]],
    ) -> None:
        """Make the change that adds messages to a thread, and with it what brings their files into its vector store.

        A thread without one, or whose store has expired, gets a new one.

        Args:
            project: whose thread it is.
            thread: where the messages go.
            messages: as the API shows them.
            make: makes the change with further operations in it; called again if others change the thread meanwhile.

        Raises:
            ObjectNotFound: a file, the thread or its vector store does not exist.
            Conflict: too many others change the thread.
        """
        file_ids = attached_files(messages)
        if not file_ids:
            await make(())
            return
        for _ in range(_MAX_ATTEMPTS):
            operations = await self._bringing(project, thread, file_ids)
            try:
                await make(operations)
            except (LeaseLost, JobEnded):
                raise
            except Conflict as error:
                conflict = error
                continue
            self._on_added()
            return
        raise conflict

    async def check(self, project: str, messages: Sequence[Body]) -> None:
        """Refuse messages that will be added later and bring files that do not exist.

        Raises:
            ObjectNotFound: a file does not exist.
        """
        objects = self._storage.of(project).objects
        for file_id in attached_files(messages):
            await objects.get(FILE.ref(file_id))

    async def adding(self, project: str, store: Ref, file_ids: Sequence[str]) -> list[Operation]:
        """Return what adds files to a vector store; those that are in it stay as they are.

        Raises:
            ObjectNotFound: a file or the store does not exist.
            ObjectRefused: the store has expired.
        """
        files = self._storage.of(project)
        record = await files.objects.get(store)
        if _is_expired(record):
            raise ObjectRefused(f"Vector store {store.id} is expired.")
        return await self._added(files, record, file_ids)

    async def _bringing(self, project: str, thread: Ref, file_ids: Sequence[str]) -> list[Operation]:
        files = self._storage.of(project)
        record = await files.objects.get(thread)
        resources = record.body["tool_resources"] or {}
        ids = (resources.get(_TOOL) or {}).get("vector_store_ids")
        if ids and not _is_expired(store := await files.objects.get(VECTOR_STORE.ref(ids[0]))):
            return await self._added(files, store, file_ids)
        new, fields = [NewStoredFile(file_id) for file_id in file_ids], {"expires_after": THREAD_STORE_EXPIRY}
        made, making = await new_store(self._storage, project, self._now, fields, new)
        named = {**resources, _TOOL: {"vector_store_ids": [made["id"]]}}
        return [*making, Update(thread, {**record.body, "tool_resources": named}, record.version)]

    async def _added(self, files: ProjectFiles, store: Record, file_ids: Sequence[str]) -> list[Operation]:
        stores = VectorStores(files)
        absent = await stores.absent_files(store.ref, file_ids)
        await stores.touch(store, self._now)
        return await stores.added(store.ref, [NewStoredFile(file_id) for file_id in absent], self._now)

    @property
    def _now(self) -> int:
        return int(self._clock.wall())


def _is_expired(store: Record) -> bool:
    return bool(store.body.get("status") == "expired")
