"""Requests for vectors: one forward pass at a time, those that somebody waits for first."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Self

import numpy

from services.cluster.background import Background
from services.embed.model import Encoder, Vectors
from services.errors import InternalError, Overloaded
from services.telemetry.clock import SystemClock
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


@dataclass(order=True)
class _Job:
    is_background: bool
    number: int
    waiting: list[tuple[int, Sequence[int]]] = field(compare=False)
    """Sequences without a vector, the longest last, each with its place in the request."""
    vectors: dict[int, Vectors] = field(compare=False)
    result: "asyncio.Future[Vectors]" = field(compare=False)


class EmbeddingWork:
    """Owns the encoder, which is made with the first request, and the thread that it runs in; ``async with``."""

    def __init__(
        self,
        load: Callable[[], Encoder],
        *,
        max_batch_tokens: int,
        max_waiting: int,
        on_tokens: Callable[[int], None] = lambda number: None,
    ) -> None:
        """``load`` runs in the encoder's thread; ``on_tokens`` is told how many tokens each forward pass embedded."""
        self._load = load
        self._on_tokens = on_tokens
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting = max_waiting
        self._encoder: Encoder | None = None
        self._queue: asyncio.PriorityQueue[_Job] = asyncio.PriorityQueue()
        self._numbers = count()
        self._executor = ThreadPoolExecutor(1, "encoder")
        self._task = Background("embedding", _log, SystemClock())
        self.num_live = 0
        """Requests without an answer."""

    async def __aenter__(self) -> Self:
        self._task.start(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._task.close()
        self._executor.shutdown(wait=True)

    async def vectors(self, sequences: Sequence[Sequence[int]], *, is_background: bool) -> Vectors:
        """Return the vectors of sequences of token ids, ``[num_sequences, dimensions]``.

        Raises:
            Overloaded: too many requests wait.
        """
        if self.num_live >= self._max_waiting:
            raise Overloaded(f"{self.num_live} requests for embeddings are waiting.", retry_after_s=1.0)
        waiting = sorted(enumerate(sequences), key=lambda pair: len(pair[1]))
        result: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self.num_live += 1
        try:
            self._queue.put_nowait(_Job(is_background, next(self._numbers), waiting, {}, result))
            return await result
        finally:
            self.num_live -= 1

    async def _run(self) -> None:
        while True:
            job = await self._queue.get()
            if job.result.done():  # nobody waits any more
                continue
            batch = self._next_batch(job)
            try:
                vectors = await asyncio.get_running_loop().run_in_executor(self._executor, self._encode, batch)
            except Exception as error:  # the encoder's; told to whoever asked, and the next request may succeed
                _log.failure("embedding.failed", error)
                if not job.result.done():
                    job.result.set_exception(InternalError("The embedding model failed; the worker's log says how."))
                continue
            self._note(job, batch, vectors)

    def _encode(self, batch: Sequence[tuple[int, Sequence[int]]]) -> Vectors:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder.encode([sequence for _, sequence in batch])

    def _next_batch(self, job: _Job) -> list[tuple[int, Sequence[int]]]:
        """Take the longest sequences, as many as go into one forward pass; they are padded to the first of them."""
        longest = len(job.waiting[-1][1])
        size = max(1, self._max_batch_tokens // longest)
        batch, job.waiting[-size:] = job.waiting[-size:], []
        return batch

    def _note(self, job: _Job, batch: Sequence[tuple[int, Sequence[int]]], vectors: Vectors) -> None:
        self._on_tokens(sum(len(sequence) for _, sequence in batch))
        job.vectors.update((place, vector) for (place, _), vector in zip(batch, vectors, strict=True))
        if job.waiting:
            self._queue.put_nowait(job)
        elif not job.result.done():
            job.result.set_result(numpy.stack([job.vectors[place] for place in range(len(job.vectors))]))
