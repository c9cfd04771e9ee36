"""The vectors of a store as one matrix in this process, read from Redis when the store has changed."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from services.errors import ObjectRefused
from services.gateway.files.storage import ProjectFiles
from services.gateway.search.chunks import StoredChunk
from services.gateway.search.stores import STATUS_LABEL, StoredFileSource
from services.gateway.store.keys import attached_key, record_key
from services.gateway.store.kinds import STORED_FILE, Ref
from services.gateway.store.records import Query, Record

_PAGE = 100


@dataclass(frozen=True)
class IndexedFile:
    """A file that can be found."""

    ref: Ref
    file_id: str
    filename: str
    attributes: Mapping[str, Any]


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

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return int(self.vectors.nbytes + self.file_numbers.nbytes + self.chunk_numbers.nbytes)


@dataclass(frozen=True)
class _FileVectors:
    vectors: NDArray[numpy.float32]
    owners: NDArray[numpy.uint32]


class IndexReader:
    """Reads what ingestion wrote in one project."""

    def __init__(self, files: ProjectFiles) -> None:
        self._files = files

    async def version(self, store: Ref) -> int:
        """Return the version of a store's index."""
        async with self._files.state.reaching() as client:
            value: Any = await client.hget(record_key(self._files.project, store), "index_version")
        return int(value or 0)

    async def read(self, store: Ref, space: str) -> StoreIndex:
        """Return the index of a store, whose vectors have to be of one embedding model.

        Raises:
            ObjectRefused: files were indexed with another model.
        """
        version = await self.version(store)
        files: list[IndexedFile] = []
        parts: list[_FileVectors] = []
        for record in await self._completed(store):
            vectors = await self._vectors(record.ref, space)
            if vectors is not None:
                source = StoredFileSource.from_bytes(record.private)
                attributes = record.body["attributes"] or {}
                files.append(IndexedFile(record.ref, record.body["id"], source.filename, attributes))
                parts.append(vectors)
        return _joined(version, space, files, parts)

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
            query = Query(STORED_FILE, store, (STATUS_LABEL, "completed"), _PAGE, "asc", after, with_private=True)
            page = await self._files.objects.list(query)
            found += page.records
            if not page.has_more:
                return found
            after = page.records[-1].ref.id

    async def _vectors(self, ref: Ref, space: str) -> _FileVectors | None:
        async with self._files.state.reaching() as client:
            pipeline = client.pipeline(transaction=True)
            pipeline.hget(record_key(self._files.project, ref), "space")
            pipeline.get(self._key(ref, "vectors"))
            pipeline.get(self._key(ref, "owners"))
            own_space, vectors, owners = await pipeline.execute()
        if own_space is None or vectors is None or owners is None:  # deleted meanwhile
            return None
        if own_space.decode() != space:
            raise ObjectRefused(
                f"The file '{ref.id.partition('.')[2]}' was indexed with another embedding model than the one that is "
                "served now; add the files to the vector store again."
            )
        numbers = numpy.frombuffer(owners, dtype="<u4")
        return _FileVectors(numpy.frombuffer(vectors, dtype="<f4").reshape(len(numbers), -1), numbers)

    def _key(self, ref: Ref, name: str) -> str:
        return attached_key(self._files.project, ref, name)


class IndexCache:
    """Indexes that were read, the latest used ones, up to ``max_bytes`` but always one."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._indexes: OrderedDict[tuple[str, str], StoreIndex] = OrderedDict()
        self.num_reads = 0
        """How often an index was read from Redis."""

    async def get(self, files: ProjectFiles, store: Ref, space: str) -> StoreIndex:
        """Return the index of a store as it is now.

        Raises:
            ObjectRefused: files were indexed with another model than ``space``.
        """
        key, reader = (files.project, store.id), IndexReader(files)
        known = self._indexes.get(key)
        if known is None or known.space != space or known.version != await reader.version(store):
            self.num_reads += 1
            known = self._indexes[key] = await reader.read(store, space)
        self._indexes.move_to_end(key)
        while len(self._indexes) > 1 and sum(index.num_bytes for index in self._indexes.values()) > self._max_bytes:
            self._indexes.popitem(last=False)
        return known


def _joined(version: int, space: str, files: Sequence[IndexedFile], parts: Sequence[_FileVectors]) -> StoreIndex:
    if not parts:
        none = numpy.zeros(0, dtype=numpy.uint32)
        return StoreIndex(version, space, (), numpy.zeros((0, 0), dtype=numpy.float32), none, none)
    numbers = [numpy.full(len(part.owners), number, dtype=numpy.uint32) for number, part in enumerate(parts)]
    return StoreIndex(
        version,
        space,
        tuple(files),
        numpy.concatenate([part.vectors for part in parts]),
        numpy.concatenate(numbers),
        numpy.concatenate([part.owners for part in parts]),
    )
