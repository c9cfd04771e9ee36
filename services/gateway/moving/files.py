"""Files with their bytes, vector stores and what is in them, from the lines of an export to what makes them."""

import hashlib
from dataclasses import replace
from pathlib import Path

from services.errors import InvalidRequest, ObjectRefused
from services.gateway.apis.openai.files.files import file_json, new_file
from services.gateway.apis.openai.vector_stores.schemas import StaticStrategy, strategy_of
from services.gateway.files.blobs import CHUNK_BYTES
from services.gateway.files.storage import StoredBytes
from services.gateway.moving.destination import Destination, different
from services.gateway.moving.lines import Line
from services.gateway.moving.shapes import (
    KeptOfStoredFile,
    ShownBatch,
    ShownFile,
    ShownStore,
    ShownStoredFile,
    named,
)
from services.gateway.search.operations import EnqueueIngestion
from services.gateway.search.stores import NewStoredFile, VectorStores, batch_json, new_store_json, with_expiry
from services.gateway.store.changes import Create
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import FILE, FILE_BATCH, VECTOR_STORE, Ref
from services.gateway.web.validation import typed


async def restore_file(line: Line, into: Destination) -> bool:
    """Make a file, with its bytes from the folder."""
    shown = typed(ShownFile, line.body)
    ref = named(FILE, shown.id)
    path = into.path_of(shown.id, shown.filename)
    if (num_bytes := path.stat().st_size) != shown.bytes:
        raise InvalidRequest(f"The file has {shown.bytes} bytes, and {path} has {num_bytes}.", param="bytes")
    body = file_json(ref, shown.created_at, shown.filename, shown.bytes, shown.purpose, shown.expires_at)
    if await _is_there(Create(ref, body), path, into):
        return False
    async with into.files.blobs.staged() as staged:
        with path.open("rb") as source:
            while data := source.read(CHUNK_BYTES):
                await staged.write(data)
        await staged.finish()
        stored = StoredBytes(staged.num_bytes, len(staged.names))
        await into.files.objects.apply(new_file(ref, body, stored, staged.names))
    return True


async def _is_there(create: Create, path: Path, into: Destination) -> bool:
    """Return whether the project has a file.

    Raises:
        DifferentObject: it has another one of that id.
    """
    if not await into.files.objects.get_present([create.ref]):
        return False
    record = await into.files.objects.get(create.ref, with_private=True)
    into.require_same(create, record.body)
    kept = hashlib.sha256()
    async for data in into.files.blobs.read(create.ref, StoredBytes.from_bytes(record.private).num_chunks):
        kept.update(data)
    with path.open("rb") as source:
        given = hashlib.file_digest(source, "sha256")
    if kept.digest() != given.digest():
        raise different(create, "has other bytes")
    return True


async def restore_store(line: Line, into: Destination) -> bool:
    """Make a vector store, without its files."""
    shown = typed(ShownStore, line.body)
    ref = named(VECTOR_STORE, shown.id)
    fields = shown.model_dump(include={"name", "description", "expires_after", "metadata"})
    body = new_store_json(ref, shown.created_at, fields)
    body = with_expiry({**body, "last_active_at": shown.last_active_at or shown.created_at})
    is_expired = shown.status == "expired"
    if is_expired:
        body = {**body, "status": "expired"}
    ends_at = None if is_expired else body["expires_at"]
    ignored = ("last_active_at", "expires_at", "status")
    return await into.make(Create(ref, body), after=[ExpireAt(ref, ends_at)], ignored=ignored)


async def restore_batch(line: Line, into: Destination) -> bool:
    """Make a file batch of a vector store, without its files."""
    shown = typed(ShownBatch, line.body)
    ref, store = named(FILE_BATCH, shown.id), _store(shown.vector_store_id)
    body = {**batch_json(ref, store, shown.created_at), "is_cancelled": shown.status == "cancelled"}
    return await into.make(Create(ref, body, store))


async def restore_stored_file(line: Line, into: Destination) -> bool:
    """Add a file to a vector store; it is indexed anew, also if that had failed or been cancelled."""
    shown = typed(ShownStoredFile, line.body)
    file, store = named(FILE, shown.id), _store(shown.vector_store_id)
    record = await into.files.objects.get(store)
    if record.body.get("status") == "expired":
        raise ObjectRefused(f"Vector store {store.id} is expired.")
    batch = typed(KeptOfStoredFile, line.kept).batch
    if batch is not None:
        await into.files.objects.get(named(FILE_BATCH, batch, "batch"), parent=store)
    strategy = shown.chunking_strategy
    cut = strategy_of(strategy if isinstance(strategy, StaticStrategy) else None)
    new = NewStoredFile(file.id, cut, shown.attributes or {})
    create, waiting = await VectorStores(into.files).added(store, [new], shown.created_at, batch=batch)
    assert isinstance(create, Create) and isinstance(waiting, EnqueueIngestion)
    now = replace(waiting, now_ms=1000 * into.now)
    return await into.make(create, after=[now], ignored=("status", "usage_bytes", "last_error"))


def _store(store_id: str) -> Ref:
    return named(VECTOR_STORE, store_id, "vector_store_id")
