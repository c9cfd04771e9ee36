"""The vectors of a store as one matrix in this process; what is new in the store is read from Redis."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy
from numpy.typing import NDArray

from services.errors import ObjectRefused, StateUnavailable
from services.gateway.files.storage import ProjectFiles
from services.gateway.search.chunks import StoredChunk
from services.gateway.search.stores import STATUS_LABEL, StoredFileSource
from services.gateway.store.keys import attached_key, record_key
from services.gateway.store.kinds import STORED_FILE, Ref
from services.gateway.store.records import Query, Record

_PAGE = 100
_FILES_PAGE = 1000
_INDEX_BYTES = 2048
_FILE_BYTES = 1024
_ATTRIBUTE_BYTES = 128
"""What an index, a file and an attribute take besides vectors and texts, about."""
_BATCH_BYTES = 8 * 2**20
"""Vectors that are read in one round trip, if a file does not have more."""

FileKey = tuple[Ref, int]
"""A file of a store and its number there: one that is taken out and added again has another number."""


@dataclass(frozen=True)
class IndexedFile:
    """A file that can be found."""

    ref: Ref
    sequence: int
    """Its number among the files of the store."""
    file_id: str
    filename: str
    attributes: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about; texts in Python have up to 4 bytes for each character."""
        num_characters = len(self.filename) + sum(len(str(value)) for value in self.attributes.values())
        return _FILE_BYTES + _ATTRIBUTE_BYTES * len(self.attributes) + 4 * num_characters


@dataclass(frozen=True)
class StoreIndex:
    """All vectors of a store at one version."""

    version: int
    space: str
    files: Sequence[IndexedFile]
    vectors: NDArray[numpy.float32]
    """``[num_vectors, dimensions]``."""
    file_numbers: NDArray[numpy.uint32]
    """``[num_vectors]``: which of ``files``."""
    chunk_numbers: NDArray[numpy.uint32]
    """``[num_vectors]``: which chunk of that file."""

    @cached_property
    def num_bytes(self) -> int:
        """Memory that it takes, about, also without any vectors."""
        arrays = int(self.vectors.nbytes + self.file_numbers.nbytes + self.chunk_numbers.nbytes)
        return _INDEX_BYTES + arrays + sum(file.num_bytes for file in self.files)

    def first_rows(self) -> NDArray[numpy.intp]:
        """Return where the vectors of each chunk begin, ``[num_chunks]``; a chunk's vectors follow each other."""
        is_first = numpy.ones(len(self.vectors), dtype=bool)
        is_first[1:] = (numpy.diff(self.file_numbers) != 0) | (numpy.diff(self.chunk_numbers) != 0)
        return numpy.flatnonzero(is_first)

    def parts(self) -> "dict[FileKey, FileVectors]":
        """Return the vectors of each file, which are not copied."""
        ends = numpy.searchsorted(self.file_numbers, numpy.arange(len(self.files)), side="right")
        first, found = 0, {}
        for file, end in zip(self.files, ends, strict=True):
            rows = slice(first, int(end))
            found[file.ref, file.sequence] = FileVectors(self.vectors[rows], self.chunk_numbers[rows])
            first = int(end)
        return found


@dataclass(frozen=True)
class FileVectors:
    """The vectors of one file."""

    vectors: NDArray[numpy.float32]
    """``[num_vectors, dimensions]``."""
    owners: NDArray[numpy.uint32]
    """``[num_vectors]``: which chunk of the file."""


class IndexReader:
    """Reads what ingestion wrote in one project."""

    def __init__(self, files: ProjectFiles) -> None:
        self._files = files
        self.num_files_read = 0
        """Of how many files vectors were asked for."""

    async def version(self, store: Ref) -> int:
        """Return the version of a store's index."""
        async with self._files.state.reaching() as client:
            value: Any = await client.hget(record_key(self._files.project, store), "index_version")
        return int(value or 0)

    async def read(self, store: Ref, space: str, known: StoreIndex | None = None) -> StoreIndex:
        """Return the index of a store, whose vectors have to be of one embedding model.

        Vectors of an earlier index of the same model, ``known``, are not read again.

        Raises:
            ObjectRefused: files were indexed with another model.
        """
        version = await self.version(store)
        records = await self._completed(store)
        parts = known.parts() if known is not None else {}
        for batch in _batches([record for record in records if _key(record) not in parts]):
            parts.update(await self._vectors(batch, space))
        present = [record for record in records if _key(record) in parts]
        return await asyncio.to_thread(_joined, version, space, present, parts)

    async def chunks(self, places: Sequence[tuple[Ref, int]]) -> list[StoredChunk | None]:
        """Return chunks by file and number; None for those that were deleted meanwhile."""
        async with self._files.state.reaching() as client:
            pipeline = client.pipeline(transaction=False)
            for ref, number in places:
                pipeline.hget(self._key(ref, "chunks"), str(number))
            found = await pipeline.execute()
        return [None if data is None else StoredChunk.from_bytes(data) for data in found]

    async def text(self, ref: Ref) -> str:
        """Return the parsed text of a file, as far as it is indexed."""
        async with self._files.state.reaching() as client:
            num_chunks: int = await client.hlen(self._key(ref, "chunks"))
        texts = []
        for first in range(0, num_chunks, _PAGE):
            places = [(ref, number) for number in range(first, min(first + _PAGE, num_chunks))]
            texts += [chunk.own_text for chunk in await self.chunks(places) if chunk is not None]
        return "".join(texts)

    async def vector_bytes(self, ref: Ref) -> int:
        """Return how much the vectors of a file take."""
        async with self._files.state.reaching() as client:
            return int(await client.strlen(self._key(ref, "vectors")))

    async def _completed(self, store: Ref) -> list[Record]:
        found: list[Record] = []
        after: str | None = None
        while True:
            query = Query(STORED_FILE, store, (STATUS_LABEL, "completed"), _FILES_PAGE, "asc", after, with_private=True)
            page = await self._files.objects.list(query)
            found += page.records
            if not page.has_more:
                return found
            after = page.records[-1].ref.id

    async def _vectors(self, records: Sequence[Record], space: str) -> dict[FileKey, FileVectors]:
        """Return the vectors of some files, read in one round trip; those that were deleted meanwhile are left out."""
        self.num_files_read += len(records)
        async with self._files.state.reaching() as client:
            pipeline = client.pipeline(transaction=True)
            for record in records:
                pipeline.hmget(record_key(self._files.project, record.ref), ["sequence", "space"])
                pipeline.get(self._key(record.ref, "vectors"))
                pipeline.get(self._key(record.ref, "owners"))
            values: list[Any] = await pipeline.execute()
        found: dict[FileKey, FileVectors] = {}
        for record, fields, vectors, owners in zip(records, values[::3], values[1::3], values[2::3], strict=True):
            sequence, own_space = fields
            if sequence is None or int(sequence) != record.sequence or None in (own_space, vectors, owners):
                continue
            _check_space(record, own_space.decode(), space)
            numbers = numpy.frombuffer(owners, dtype="<u4")
            matrix = numpy.frombuffer(vectors, dtype="<f4").reshape(len(numbers), -1)
            found[_key(record)] = FileVectors(matrix, numbers)
        return found

    def _key(self, ref: Ref, name: str) -> str:
        return attached_key(self._files.project, ref, name)


class IndexCache:
    """Indexes that were read, the latest used ones, up to ``max_bytes`` but always one."""

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._indexes: OrderedDict[tuple[str, str], StoreIndex] = OrderedDict()
        self._num_bytes = 0
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.num_reads = 0
        """How often an index was read from Redis."""
        self.num_files_read = 0
        """Of how many files vectors were read."""

    async def get(self, files: ProjectFiles, store: Ref, space: str) -> StoreIndex:
        """Return the index of a store as it is now; searches that come together share one reading.

        Raises:
            ObjectRefused: files were indexed with another model than ``space``.
            StateUnavailable: Redis cannot be reached, or the index not be read in time.
        """
        key, reader = (files.project, store.id), IndexReader(files)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with asyncio.timeout(self._timeout_s):
                wanted = await reader.version(store)
                async with lock:
                    return await self._read(reader, key, store, space, wanted)
        except TimeoutError as error:
            text = f"Vector store {store.id} could not be read within {self._timeout_s:g} s; try again."
            raise StateUnavailable(text) from error

    async def _read(self, reader: IndexReader, key: tuple[str, str], store: Ref, space: str, wanted: int) -> StoreIndex:
        """Return an index of at least the version ``wanted``."""
        known = self._indexes.get(key)
        if known is not None and known.space != space:
            known = None
        if known is not None and known.version >= wanted:
            self._indexes.move_to_end(key)
            return known
        self.num_reads += 1
        try:
            index = await reader.read(store, space, known)
        finally:
            self.num_files_read += reader.num_files_read
        self._keep(key, index)
        return index

    def _keep(self, key: tuple[str, str], index: StoreIndex) -> None:
        """Take an index in, in the place of an older one; those that were not used for longest go."""
        if (before := self._indexes.pop(key, None)) is not None:
            self._num_bytes -= before.num_bytes
        self._indexes[key] = index
        self._num_bytes += index.num_bytes
        while self._num_bytes > self._max_bytes and len(self._indexes) > 1:
            _, oldest = self._indexes.popitem(last=False)
            self._num_bytes -= oldest.num_bytes


def _key(record: Record) -> FileKey:
    return record.ref, record.sequence


def _batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield files whose vectors are read together."""
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        used = record.body["usage_bytes"]
        if batch and num_bytes + used > _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(record)
        num_bytes += used
    if batch:
        yield batch


def _check_space(record: Record, own: str, wanted: str) -> None:
    if own != wanted:
        raise ObjectRefused(
            f"The file '{record.body['id']}' was indexed with another embedding model than the one that is "
            "served now; add the files to the vector store again."
        )


def _joined(version: int, space: str, records: Sequence[Record], parts: Mapping[FileKey, FileVectors]) -> StoreIndex:
    """Return the index of files of which all vectors are at hand; CPU work."""
    if not records:
        none = numpy.zeros(0, dtype=numpy.uint32)
        return StoreIndex(version, space, (), numpy.zeros((0, 0), dtype=numpy.float32), none, none)
    own = [parts[_key(record)] for record in records]
    numbers = [numpy.full(len(part.owners), number, dtype=numpy.uint32) for number, part in enumerate(own)]
    return StoreIndex(
        version,
        space,
        tuple(_file(record) for record in records),
        numpy.concatenate([part.vectors for part in own]),
        numpy.concatenate(numbers),
        numpy.concatenate([part.owners for part in own]),
    )


def _file(record: Record) -> IndexedFile:
    source = StoredFileSource.from_bytes(record.private)
    return IndexedFile(record.ref, record.sequence, record.body["id"], source.filename, record.body["attributes"] or {})
