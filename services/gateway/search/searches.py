"""Searches of vector stores: what the endpoint and the tool ``file_search`` call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from services.errors import ObjectRefused
from services.gateway.embeddings.models import EmbeddingModel, EmbeddingModels
from services.gateway.files.storage import FileStorage, ProjectFiles
from services.gateway.search.filters import Filter
from services.gateway.search.index import IndexCache, IndexReader, StoreIndex
from services.gateway.search.stores import VectorStores
from services.gateway.store.kinds import VECTOR_STORE, Ref
from services.gateway.text.threads import TextThreads
from services.telemetry.clock import Clock

MAX_RESULTS = 50
MAX_QUERY_TOKENS = 4096
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True)
class SearchRequest:
    """What is looked for."""

    queries: Sequence[str]
    """A chunk's score is the best of them."""
    max_num_results: int = 10
    score_threshold: float = 0.0
    filter: Filter | None = None


@dataclass(frozen=True)
class SearchResult:
    """A chunk that was found."""

    file_id: str
    filename: str
    score: float
    """Cosine similarity, 0 to 1."""
    attributes: dict[str, Any]
    text: str


@dataclass(frozen=True)
class _Hit:
    score: float
    index: StoreIndex
    file_number: int
    chunk_number: int

    @property
    def place(self) -> tuple[Ref, int]:
        return self.index.files[self.file_number].ref, self.chunk_number


class Searches:
    """Searches vector stores; the vectors of each are kept in this process."""

    def __init__(
        self, storage: FileStorage, models: EmbeddingModels, threads: TextThreads, clock: Clock, cache: IndexCache
    ) -> None:
        self._storage = storage
        self._models = models
        self._threads = threads
        self._clock = clock
        self.cache = cache

    async def search(
        self, project: str, vector_store_ids: Sequence[str], request: SearchRequest, request_id: str
    ) -> list[SearchResult]:
        """Return the chunks of some stores that are most like the queries, the best first.

        Args:
            project: whose stores they are.
            vector_store_ids: all are searched as one.
            request: what is looked for.
            request_id: appears in the log lines about it.

        Raises:
            ObjectNotFound: a store does not exist.
            ObjectRefused: a store expired, or was indexed with another embedding model.
            NoEmbeddingWorker: nobody can embed the queries.
        """
        files = self._storage.of(project)
        stores = [await self._usable(files, VECTOR_STORE.ref(store_id)) for store_id in vector_store_ids]
        model = await self._models.resolve()
        queries = await self._embedded(model, request.queries, request_id)
        hits: list[_Hit] = []
        for store in stores:
            index = await self.cache.get(files, store, model.space)
            hits += await self._threads.run(lambda index=index: _hits(index, queries, request))  # type: ignore[misc]
        best = sorted(hits, key=lambda hit: -hit.score)[: request.max_num_results]
        chunks = await IndexReader(files).chunks([hit.place for hit in best])
        return [_result(hit, chunk.text) for hit, chunk in zip(best, chunks, strict=True) if chunk is not None]

    async def wait_for_indexing(self, project: str, vector_store_ids: Sequence[str], until_s: float) -> None:
        """Wait until no file of some stores is still to be indexed, but not beyond ``until_s``, in Unix seconds."""
        stores, refs = VectorStores(self._storage.of(project)), [VECTOR_STORE.ref(each) for each in vector_store_ids]
        while self._clock.wall() < until_s and await stores.are_indexing(refs):
            await self._clock.sleep(_LOOK_AGAIN_S)

    async def _usable(self, files: ProjectFiles, ref: Ref) -> Ref:
        record = await files.objects.get(ref)
        if record.body.get("status") == "expired":
            raise ObjectRefused(f"Vector store {ref.id} is expired.")
        await VectorStores(files).touch(record, int(self._clock.wall()))
        return ref

    async def _embedded(self, model: EmbeddingModel, queries: Sequence[str], request_id: str) -> NDArray[numpy.float32]:
        """Return ``[num_vectors, dimensions]``: one vector for each query, more for queries longer than the context."""

        def sequences() -> list[list[int]]:
            ids = [model.tokenizer.token_ids(query)[:MAX_QUERY_TOKENS] for query in queries]
            return [sequence for each in ids for sequence in model.tokenizer.sequences(each)]

        return await self._models.vectors(model, await self._threads.run(sequences), request_id)


def _hits(index: StoreIndex, queries: NDArray[numpy.float32], request: SearchRequest) -> list[_Hit]:
    """Return the best chunks of one store, each once; CPU work."""
    if not len(index.vectors):
        return []
    rows = index.first_rows()
    scores = numpy.maximum.reduceat((index.vectors @ queries.T).max(axis=1), rows).clip(0.0, 1.0)
    may_be_found = scores >= request.score_threshold
    if (wanted := request.filter) is not None:
        accepted = numpy.array([wanted.accepts(file.attributes) for file in index.files])
        may_be_found &= accepted[index.file_numbers[rows]]
    candidates = numpy.flatnonzero(may_be_found)
    best = candidates[_highest(scores[candidates], request.max_num_results)]
    return [
        _Hit(float(scores[chunk]), index, int(index.file_numbers[row]), int(index.chunk_numbers[row]))
        for chunk, row in zip(best, rows[best], strict=True)
    ]


def _highest(scores: NDArray[numpy.float32], num_wanted: int) -> NDArray[numpy.intp]:
    """Return the places of the highest of ``scores`` (``[num]``), the highest first, equal ones in their order."""
    places = numpy.arange(len(scores))
    if len(scores) > num_wanted:  # few are sorted: sorting all takes as long as the product with the matrix
        places = numpy.flatnonzero(scores >= numpy.partition(scores, -num_wanted)[-num_wanted])
    return places[numpy.argsort(-scores[places], kind="stable")][:num_wanted]


def _result(hit: _Hit, text: str) -> SearchResult:
    file = hit.index.files[hit.file_number]
    return SearchResult(file.file_id, file.filename, hit.score, dict(file.attributes), text)
