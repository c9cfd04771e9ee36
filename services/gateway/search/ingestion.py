"""Indexes one file of a vector store: parse, cut, embed, write; another gateway can go on at any point."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy

from services.errors import (
    Conflict,
    DeadlineExceeded,
    ObjectNotFound,
    Overloaded,
    PeerError,
    StateUnavailable,
    TandemError,
    Unavailable,
)
from services.gateway.documents.parsing import DocumentRefused, Parser
from services.gateway.embeddings.models import EmbeddingModel, EmbeddingModels
from services.gateway.files.storage import FileStorage, ProjectFiles, StoredBytes
from services.gateway.search.chunks import Chunk, Strategy, cut
from services.gateway.search.index import IndexReader
from services.gateway.search.operations import QUEUE, BeginChunks, DiscardChunks, TouchIndex, WriteChunks
from services.gateway.search.stores import StoredFileSource, file_of, store_of
from services.gateway.store.changes import Operation, Update
from services.gateway.store.kinds import Ref
from services.gateway.store.leases import EndLease, ForgetLease, RenewLease, TakeLease
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

BATCH_CHUNKS = 4
"""Chunks that are embedded and written at once: what is done again after a failure."""
_RENEWALS = 4
_RETRY_S = 1.0
_MAX_ATTEMPTS = 10
MAX_TAKES = 20
"""How often a file is taken up; one that ends its gateway each time shall not do so for ever."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class IngestionLimits:
    """Bounds of indexing."""

    lease_s: float
    patience_s: float
    """How long embedding workers may be away before a file is given up."""
    max_tokens: int
    """Of one file."""


@dataclass
class _Job:
    """A file that this gateway holds."""

    files: ProjectFiles
    ref: Ref
    fence: int
    num_takes: int
    """How often it was taken up, by any gateway."""

    @property
    def file(self) -> Ref:
        return file_of(self.ref)


class Ingestion:
    """Takes files and indexes them."""

    def __init__(
        self,
        storage: FileStorage,
        parser: Parser,
        models: EmbeddingModels,
        clock: Clock,
        limits: IngestionLimits,
    ) -> None:
        self._storage = storage
        self._parser = parser
        self._models = models
        self._clock = clock
        self._limits = limits

    @property
    def now_ms(self) -> int:
        """The present time, in milliseconds since the Unix epoch."""
        return round(1e3 * self._clock.wall())

    async def run(self, project: str, ref: Ref) -> None:
        """Index a file of a store if no other gateway does.

        Raises:
            StateUnavailable: Redis cannot be reached; the file is taken up again when the lease has ended.
        """
        files = self._storage.of(project)
        try:
            [taken] = await files.objects.apply([TakeLease(QUEUE, ref, self.now_ms, self._until_ms())])
        except Conflict:
            return
        except ObjectNotFound:
            await files.objects.apply([ForgetLease(QUEUE, ref)])
            return
        job = _Job(files, ref, taken.details["fence"], taken.details["takes"])
        try:
            await self._holding(job, self._index(job))
        except (Conflict, ObjectNotFound) as error:  # taken over, cancelled or deleted
            _log.event("ingestion.lost", object=ref.id, reason=error.message)
        except asyncio.CancelledError:
            await self._give_back(job)
            raise

    async def _holding(self, job: _Job, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` while the lease is renewed; a lease that is lost ends it."""
        working, renewing = asyncio.create_task(work), asyncio.create_task(self._renew(job))
        try:
            await asyncio.wait((working, renewing), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                renewing.result()
            working.result()
        finally:
            working.cancel()
            renewing.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)

    async def _renew(self, job: _Job) -> None:
        while True:
            await self._clock.sleep(self._limits.lease_s / _RENEWALS)
            await job.files.objects.apply([RenewLease(QUEUE, job.ref, job.fence, self._until_ms())])

    async def _give_back(self, job: _Job) -> None:
        """Let another gateway go on at once."""
        try:
            await job.files.objects.apply([RenewLease(QUEUE, job.ref, job.fence, self.now_ms)])
        except (Conflict, ObjectNotFound, StateUnavailable) as error:
            _log.event("ingestion.not_given_back", object=job.ref.id, reason=error.message)

    async def _index(self, job: _Job) -> None:
        record = await job.files.objects.get(job.ref, with_private=True)
        strategy = Strategy.of_json(record.body["chunking_strategy"])
        source = StoredFileSource.from_bytes(record.private)
        if job.num_takes > MAX_TAKES:
            await self._fail(job, source, "server_error", f"Indexing was begun {MAX_TAKES} times and never ended.")
            return
        try:
            used = await self._index_text(job, source, strategy)
        except DocumentRefused as error:
            await self._fail(job, source, error.code, error.message)
        except (Conflict, ObjectNotFound, StateUnavailable):
            raise
        except TandemError as error:
            await self._fail(job, source, "server_error", error.message)
        except Exception as error:  # one file must not stop the others; the next gateway would fail with it too
            _log.failure("ingestion.failed", error, object=job.ref.id)
            await self._fail(job, source, "server_error", "The file could not be indexed; the gateway's log says why.")
        else:
            await self._end(job, source, {"status": "completed", "last_error": None, "usage_bytes": used})

    async def _index_text(self, job: _Job, source: StoredFileSource, strategy: Strategy) -> int:
        """Parse, cut, embed and write; return how many bytes that takes."""
        text = await self._text(job, source.filename)
        model = await self._patiently(self._models.resolve)
        chunks = await asyncio.to_thread(cut, text, strategy, model.tokenizer)
        self._check(chunks)
        await self._write(job, model, chunks)
        return len(text.encode()) + await IndexReader(job.files).vector_bytes(job.ref)

    async def _text(self, job: _Job, filename: str) -> str:
        try:
            file = await job.files.objects.get(job.file, with_private=True)
            stored = StoredBytes.from_bytes(file.private)
            async with aclosing(job.files.blobs.read(job.file, stored.num_chunks)) as chunks:
                return await self._parser.text(filename, chunks)
        except ObjectNotFound as error:
            raise DocumentRefused("invalid_file", "The file was deleted before it was indexed.") from error

    def _check(self, chunks: Sequence[Chunk]) -> None:
        num_tokens = sum(len(sequence) for chunk in chunks for sequence in chunk.sequences)
        if num_tokens > self._limits.max_tokens:
            text = f"The file has about {num_tokens} tokens; at most {self._limits.max_tokens} are indexed."
            raise DocumentRefused("invalid_file", text)
        if not chunks:
            raise DocumentRefused("invalid_file", "The file has no text.")

    async def _write(self, job: _Job, model: EmbeddingModel, chunks: Sequence[Chunk]) -> None:
        [begun] = await job.files.objects.apply([BeginChunks(job.ref, job.fence, model.space)])
        for first in range(begun.details["num_chunks"], len(chunks), BATCH_CHUNKS):
            batch = chunks[first : first + BATCH_CHUNKS]
            owners = [first + number for number, chunk in enumerate(batch) for _ in chunk.sequences]
            sequences = [sequence for chunk in batch for sequence in chunk.sequences]
            vectors = await self._patiently(
                lambda sequences=sequences: self._models.vectors(  # type: ignore[misc]
                    model, sequences, job.ref.id, is_background=True
                )
            )
            write = WriteChunks(
                job.ref,
                job.fence,
                first,
                [chunk.to_bytes() for chunk in batch],
                vectors.astype("<f4").tobytes(),
                numpy.array(owners, dtype="<u4").tobytes(),
                self._until_ms(),
            )
            await job.files.objects.apply([write])

    async def _patiently(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return what ``work`` returns, tried again while nobody can do it."""
        give_up_s = self._clock.now() + self._limits.patience_s
        while True:
            try:
                return await work()
            except (PeerError, Unavailable, Overloaded, DeadlineExceeded) as error:
                if isinstance(error, StateUnavailable) or self._clock.now() >= give_up_s:
                    raise
                _log.warning("ingestion.waits", code=error.code, reason=error.message)
            await self._clock.sleep(_RETRY_S)

    async def _fail(self, job: _Job, source: StoredFileSource, code: str, message: str) -> None:
        error = {"code": code, "message": message}
        fields = {"status": "failed", "last_error": error, "usage_bytes": 0}
        await self._end(job, source, fields, [DiscardChunks(job.ref)])

    async def _end(
        self, job: _Job, source: StoredFileSource, fields: Mapping[str, Any], also: Sequence[Operation] = ()
    ) -> None:
        for _ in range(_MAX_ATTEMPTS):
            record = await job.files.objects.get(job.ref)
            operations: list[Operation] = [
                EndLease(QUEUE, job.ref, job.fence),
                TouchIndex(store_of(job.ref), fields["usage_bytes"]),
                Update(job.ref, {**record.body, **fields}, record.version, labels=source.labels(fields["status"])),
                *also,
            ]
            try:
                await job.files.objects.apply(operations)
            except Conflict:  # its attributes were changed meanwhile, or another gateway has it, which this tells
                await job.files.objects.apply([RenewLease(QUEUE, job.ref, job.fence, self._until_ms())])
                continue
            _log.event("ingestion.ended", object=job.ref.id, status=fields["status"])
            return
        raise Conflict(f"{job.ref.id} is being changed by others.")

    def _until_ms(self) -> int:
        return self.now_ms + round(1e3 * self._limits.lease_s)
