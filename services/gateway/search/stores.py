"""Vector stores as objects: what they show, what is added to them and taken from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from services.errors import Conflict, ObjectNotFound, ObjectRefused
from services.gateway.files.storage import FileStorage, ProjectFiles
from services.gateway.search.chunks import Strategy
from services.gateway.search.operations import QUEUE, DiscardChunks, EnqueueIngestion, RenewStoredFile, TouchIndex
from services.gateway.store.changes import Create, Delete, Operation, Update
from services.gateway.store.expiry import ExpireAt, RequireDue
from services.gateway.store.keys import attached_key, index_name, project_prefix, record_key
from services.gateway.store.kinds import FILE, FILE_BATCH, STORED_FILE, VECTOR_STORE, Ref
from services.gateway.store.leases import EndLease
from services.gateway.store.private import known_fields
from services.gateway.store.records import Page, Query, Record

STATUSES = ("in_progress", "completed", "failed", "cancelled")
STATUS_LABEL = "status"
BATCH_LABEL = "batch"
BATCH_STATUS_LABEL = "batch_status"
DAY_S = 86_400
ACTIVE_AGAIN_S = 60
"""A store that is used more often than this is written only so often."""
_MAX_ATTEMPTS = 10
_PAGE = 100

Body = Mapping[str, Any]
Attributes = Mapping[str, str | float | bool]


@dataclass(frozen=True)
class NewStoredFile:
    """A file that is to be added to a vector store."""

    file_id: str
    strategy: Strategy = field(default_factory=Strategy)
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True)
class StoredFileSource:
    """What a file of a store is made of; its private bytes."""

    filename: str
    batch: str | None = None

    def to_bytes(self) -> bytes:
        """Return the private bytes."""
        return orjson.dumps({"filename": self.filename, "batch": self.batch})

    @classmethod
    def from_bytes(cls, data: bytes | None) -> "StoredFileSource":
        """Read what ``to_bytes`` wrote."""
        return cls(**known_fields(cls, orjson.loads(data or b'{"filename": ""}')))

    def labels(self, status: str) -> Mapping[str, str]:
        """Return the lists that the file is in."""
        own = {STATUS_LABEL: status}
        if self.batch is None:
            return own
        return {**own, BATCH_LABEL: self.batch, BATCH_STATUS_LABEL: f"{self.batch}.{status}"}


class VectorStores:
    """The vector stores of one project."""

    def __init__(self, files: ProjectFiles) -> None:
        self._files = files
        self._objects = files.objects

    async def shown(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Return stores as the API shows them, with the counts of this moment."""
        counts = await self._counts([(record.ref, STATUS_LABEL, "{}") for record in records])
        async with self._files.state.reaching() as client:
            pipeline = client.pipeline(transaction=False)
            for record in records:
                pipeline.hget(record_key(self._files.project, record.ref), "usage_bytes")
            usage: Sequence[bytes | None] = await pipeline.execute()
        return [
            _store_json(record.body, count, int(used or 0))
            for record, count, used in zip(records, counts, usage, strict=True)
        ]

    async def shown_batches(self, store: Ref, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Return file batches as the API shows them, with the counts of this moment."""
        labels = [(store, BATCH_STATUS_LABEL, record.ref.id + ".{}") for record in records]
        pairs = zip(records, await self._counts(labels), strict=True)
        return [_batch_json(record.body, count) for record, count in pairs]

    async def add(self, store: Ref, new: Sequence[NewStoredFile], created: int, *, batch: Create | None = None) -> None:
        """Add files to a store in one change, with the batch that they make up; those that are in it are indexed anew.

        Raises:
            ObjectNotFound: a file does not exist, or the store.
            ObjectRefused: the store has expired.
            QuotaExceeded: the project has no room for them; the store is as it was.
            Conflict: too many others change them.
        """
        refs = [stored_ref(store, each.file_id) for each in new]
        making, batch_id = ([], None) if batch is None else ([batch], batch.ref.id)
        for _ in range(_MAX_ATTEMPTS):
            record = await self._objects.get(store)
            if record.body.get("status") == "expired":
                raise ObjectRefused(f"Vector store {store.id} is expired.")
            present = {found.ref: found for found in await self._objects.get_present(refs)}
            operations = await self.added(store, new, created, batch=batch_id, present=present)
            try:
                await self._objects.apply([*making, *operations])
            except (Conflict, ObjectNotFound) as error:  # added, indexed or taken out meanwhile
                failure = error
                continue
            await self.touch(record, created)
            return
        raise failure

    async def added(
        self,
        store: Ref,
        new: Sequence[NewStoredFile],
        created: int,
        *,
        batch: str | None = None,
        present: Mapping[Ref, Record] | None = None,
    ) -> list[Operation]:
        """Return what adds files to a store; of those that are in it, ``present`` has the records.

        Raises:
            ObjectNotFound: a file does not exist.
        """
        operations: list[Operation] = []
        for each in new:
            file = await self._objects.get(FILE.ref(each.file_id))
            ref, source = stored_ref(store, each.file_id), StoredFileSource(file.body["filename"], batch)
            create = Create(
                ref, stored_file_json(store, each, created), store, source.labels("in_progress"), source.to_bytes()
            )
            record = present.get(ref) if present else None
            operations += [create] if record is None else _renewal(record, create, store)
            operations.append(EnqueueIngestion(ref, file.ref, 1000 * created))
        return operations

    async def remove(self, store: Ref, file_id: str) -> None:
        """Take a file out of a store.

        Raises:
            ObjectNotFound: it is not in it.
        """
        for _ in range(_MAX_ATTEMPTS):
            record = await self.get_file(store, file_id)
            try:
                await self._objects.apply(removal(record, store))
            except Conflict:  # indexed a bit further meanwhile
                continue
            return
        raise Conflict(f"The file '{file_id}' is being changed by others; try again.")

    async def get_file(self, store: Ref, file_id: str, *, with_private: bool = False) -> Record:
        """Return a file of a store.

        Raises:
            ObjectNotFound: it is not in it, or there is no such store.
        """
        try:
            return await self._objects.get(stored_ref(store, file_id), parent=store, with_private=with_private)
        except ObjectNotFound:
            await self._objects.get(store)
            raise ObjectNotFound(f"No file found with id '{file_id}' in vector store '{store.id}'.") from None

    async def absent_files(self, store: Ref, file_ids: Sequence[str]) -> list[str]:
        """Return those of some files that are not in a store."""
        absent = []
        for file_id in file_ids:
            try:
                await self._objects.get(stored_ref(store, file_id), parent=store)
            except ObjectNotFound:
                absent.append(file_id)
        return absent

    async def are_indexing(self, stores: Sequence[Ref]) -> bool:
        """Return whether files of some stores are still to be indexed."""
        counts = await self._counts([(store, STATUS_LABEL, "{}") for store in stores])
        return any(each["file_counts"]["in_progress"] for each in counts)

    async def change_file(self, store: Ref, file_id: str, fields: Body) -> Record:
        """Write fields of a file of a store anew and return it."""
        for _ in range(_MAX_ATTEMPTS):
            record = await self.get_file(store, file_id)
            body = {**record.body, **fields}
            try:
                await self._objects.apply([Update(record.ref, body, record.version, store), TouchIndex(store)])
            except Conflict:
                continue
            return replace(record, body=body)
        raise Conflict(f"The file '{file_id}' is being changed by others; try again.")

    async def touch(self, store: Record, now: int) -> None:
        """Note that a store is used; its end moves."""
        if now - (store.body["last_active_at"] or 0) < ACTIVE_AGAIN_S:
            return
        body = with_expiry({**store.body, "last_active_at": now})
        try:
            await self._objects.apply([Update(store.ref, body, store.version), ExpireAt(store.ref, body["expires_at"])])
        except (Conflict, ObjectNotFound):  # the next use notes it
            return

    async def cancel_batch(self, store: Ref, batch: Record) -> None:
        """Stop the indexing of a batch's files that are not indexed yet."""
        fields = {**batch.body, "is_cancelled": True}
        await self._objects.apply([Update(batch.ref, fields, batch.version, store)])
        label = (BATCH_STATUS_LABEL, f"{batch.ref.id}.in_progress")
        while (page := await self._files_page(store, label)).records:
            for record in page.records:
                source = StoredFileSource.from_bytes(record.private)
                cancelled, labels = {**record.body, "status": "cancelled"}, source.labels("cancelled")
                update = Update(record.ref, cancelled, record.version, store, labels)
                try:
                    await self._objects.apply([update, EndLease(QUEUE, record.ref), DiscardChunks(record.ref)])
                except (Conflict, ObjectNotFound):  # it was indexed or deleted meanwhile; the next page tells
                    continue

    async def _files_page(self, store: Ref, label: tuple[str, str] | None) -> Page:
        return await self._objects.list(Query(STORED_FILE, store, label, limit=_PAGE, with_private=True))

    async def _counts(self, labels: Sequence[tuple[Ref, str, str]]) -> list[dict[str, dict[str, int]]]:
        """Return ``file_counts`` for each (store, label, value with {} for the status)."""
        async with self._files.state.reaching() as client:
            pipeline = client.pipeline(transaction=False)
            for store, name, value in labels:
                for status in STATUSES:
                    index = index_name(store, STORED_FILE.name, (name, value.format(status)))
                    pipeline.zcard(project_prefix(self._files.project) + index)
            numbers: list[int] = await pipeline.execute()
        rows = [numbers[first : first + len(STATUSES)] for first in range(0, len(numbers), len(STATUSES))]
        return [{"file_counts": {**dict(zip(STATUSES, row, strict=True)), "total": sum(row)}} for row in rows]


def removal(record: Record, store: Ref) -> list[Operation]:
    """Return what takes a file out of a store, in the version that was read."""
    used = record.body["usage_bytes"]
    return [EndLease(QUEUE, record.ref), TouchIndex(store, -used), Delete(record.ref, record.version, store)]


def _renewal(record: Record, new: Create, store: Ref) -> list[Operation]:
    """Return what makes a file that is in a store, in the version that was read, like a new one."""
    used = record.body["usage_bytes"]
    update = Update(new.ref, new.body, record.version, store, new.labels, new.private)
    return [RenewStoredFile(new.ref), update, TouchIndex(store, -used)]


def stored_ref(store: Ref, file_id: str) -> Ref:
    """Return the name of a file of a store: one file may be in several stores."""
    return STORED_FILE.ref(f"{store.id}.{file_id}")


def file_of(stored: Ref) -> Ref:
    """Return the file that a file of a store is made of."""
    return FILE.ref(stored.id.partition(".")[2])


def store_of(stored: Ref) -> Ref:
    """Return the store of a file of a store."""
    return VECTOR_STORE.ref(stored.id.partition(".")[0])


def new_store_json(ref: Ref, created: int, fields: Body) -> dict[str, Any]:
    """Return a new store as it is kept; what ``fields`` leave out has its default."""
    defaults: dict[str, Any] = {"name": "", "description": None, "expires_after": None, "metadata": {}}
    body = {
        "id": ref.id,
        "object": "vector_store",
        "created_at": created,
        **{name: value if fields.get(name) is None else fields[name] for name, value in defaults.items()},
        "last_active_at": created,
    }
    return with_expiry(body)


def with_expiry(body: Body) -> dict[str, Any]:
    """Return a store's body with its end as its other fields have it."""
    policy = body["expires_after"]
    expires_at = None if policy is None else body["last_active_at"] + DAY_S * policy["days"]
    return {**body, "expires_at": expires_at}


def stored_file_json(store: Ref, new: NewStoredFile, created: int) -> dict[str, Any]:
    """Return a new file of a store as the API shows it."""
    return {
        "id": new.file_id,
        "object": "vector_store.file",
        "usage_bytes": 0,
        "created_at": created,
        "vector_store_id": store.id,
        "status": "in_progress",
        "last_error": None,
        "chunking_strategy": new.strategy.to_json(),
        "attributes": dict(new.attributes),
    }


def batch_json(ref: Ref, store: Ref, created: int) -> dict[str, Any]:
    """Return a new file batch as it is kept."""
    return {
        "id": ref.id,
        "object": "vector_store.files_batch",
        "created_at": created,
        "vector_store_id": store.id,
        "is_cancelled": False,
    }


def _store_json(body: Body, counts: Mapping[str, Mapping[str, int]], usage_bytes: int) -> dict[str, Any]:
    status = body.get("status") or ("in_progress" if counts["file_counts"]["in_progress"] else "completed")
    shown = {**body, "status": status, "usage_bytes": usage_bytes, **counts}
    return {name: value for name, value in shown.items() if value is not None or name not in _LEFT_OUT}


_LEFT_OUT = ("expires_after", "description")
"""Fields of a store that are objects or strings where there are any, and absent otherwise."""


def _batch_json(body: Body, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    shown = {name: value for name, value in body.items() if name != "is_cancelled"}
    return {**shown, "status": _batch_status(body, counts), **counts}


def _batch_status(body: Body, counts: Mapping[str, Mapping[str, int]]) -> str:
    numbers = counts["file_counts"]
    if body["is_cancelled"]:
        return "cancelled"
    if numbers["in_progress"]:
        return "in_progress"
    return "failed" if numbers["total"] and numbers["failed"] == numbers["total"] else "completed"


async def file_deletion(files: ProjectFiles, ref: Ref) -> list[Operation]:
    """Return what deletes a file, and what was made of it in vector stores.

    Raises:
        ObjectNotFound: there is no such file.
    """
    async with files.state.reaching() as client:
        links: Any = await client.smembers(attached_key(files.project, ref, "stores"))
    operations: list[Operation] = [ExpireAt(ref, None)]
    stored = [STORED_FILE.ref(link.decode().partition(":")[2]) for link in sorted(links)]
    for record in await files.objects.get_present(stored):
        operations += removal(record, store_of(record.ref))
    return [*operations, Delete(ref)]


async def end_store(files: ProjectFiles, due: RequireDue) -> None:
    """Let a store whose time is over expire: it stays, without its files."""
    ref = due.ref
    store = await files.objects.get(ref)
    await files.objects.apply([due, Update(ref, {**store.body, "status": "expired"}, store.version)])
    while (page := await files.objects.list(Query(STORED_FILE, ref, limit=_PAGE))).records:
        for record in page.records:
            await files.objects.apply(removal(record, ref))
    await files.objects.apply([ExpireAt(ref, None)])


async def new_store(
    storage: FileStorage, project: str, created: int, fields: Body, new: Sequence[NewStoredFile]
) -> tuple[dict[str, Any], list[Operation]]:
    """Return a new store as it is kept, and what makes it and adds its first files.

    Raises:
        ObjectNotFound: a file does not exist.
    """
    await storage.register(project)
    ref = VECTOR_STORE.new_ref()
    body = new_store_json(ref, created, fields)
    added = await VectorStores(storage.of(project)).added(ref, new, created)
    return body, [Create(ref, body), ExpireAt(ref, body["expires_at"]), *added]


def new_batch(store: Ref, created: int) -> Create:
    """Return the creation of a file batch."""
    ref = FILE_BATCH.new_ref()
    return Create(ref, batch_json(ref, store, created), store)
