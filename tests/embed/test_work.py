"""Requests for vectors: order, batches, bounds and failures, with an encoder that a test holds."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import numpy
import pytest

from services.embed.model import Vectors
from services.embed.work import EmbeddingWork
from services.errors import InternalError, Overloaded

WAIT_S = 30.0


class HeldEncoder:
    """Notes its batches; the vector of a sequence is its first id."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.has_begun = threading.Event()
        self.error: Exception | None = None

    def encode(self, sequences: Sequence[Sequence[int]]) -> Vectors:
        self.has_begun.set()
        self.gate.wait(WAIT_S)
        self.batches.append([sequence[0] for sequence in sequences])
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return numpy.array([[sequence[0], 0] for sequence in sequences], dtype=numpy.float32)


@pytest.fixture
def encoder() -> HeldEncoder:
    return HeldEncoder()


@pytest.fixture
async def work(encoder: HeldEncoder) -> AsyncIterator[EmbeddingWork]:
    async with EmbeddingWork(lambda: encoder, max_batch_tokens=8, max_waiting=3) as made:
        yield made


def ask(work: EmbeddingWork, *firsts: int, length: int = 4, is_background: bool = False) -> "asyncio.Task[Vectors]":
    sequences = [[first] * length for first in firsts]
    return asyncio.create_task(work.vectors(sequences, is_background=is_background))


async def hold(encoder: HeldEncoder) -> None:
    """Return when the encoder stands at its gate."""
    await asyncio.to_thread(encoder.has_begun.wait, WAIT_S)


async def test_vectors_come_in_the_order_of_the_sequences(work: EmbeddingWork, encoder: HeldEncoder) -> None:
    vectors = await work.vectors([[1], [2] * 8, [3] * 3, [4] * 3], is_background=False)

    assert vectors[:, 0].tolist() == [1, 2, 3, 4]
    assert encoder.batches == [[2], [3, 4], [1]]  # alike lengths together, at most 8 tokens each


async def test_nothing_is_loaded_before_the_first_request(encoder: HeldEncoder) -> None:
    loads: list[int] = []

    def load() -> HeldEncoder:
        loads.append(1)
        return encoder

    async with EmbeddingWork(load, max_batch_tokens=8, max_waiting=3) as work:
        await asyncio.sleep(0)
        assert loads == []
        await ask(work, 1)
        await ask(work, 2)
    assert loads == [1]


async def test_who_waits_goes_before_background_work_that_has_begun(work: EmbeddingWork, encoder: HeldEncoder) -> None:
    encoder.gate.clear()
    background = ask(work, 1, 2, 3, 4, is_background=True)
    await hold(encoder)
    urgent = ask(work, 9)
    await asyncio.sleep(0)
    encoder.gate.set()
    await asyncio.wait_for(asyncio.gather(background, urgent), WAIT_S)

    assert encoder.batches == [[3, 4], [9], [1, 2]]


async def test_a_request_that_nobody_waits_for_is_dropped(work: EmbeddingWork, encoder: HeldEncoder) -> None:
    encoder.gate.clear()
    first, second = ask(work, 1), ask(work, 2)
    await hold(encoder)
    second.cancel()
    await asyncio.wait([second], timeout=WAIT_S)
    encoder.gate.set()
    await asyncio.wait_for(first, WAIT_S)
    await ask(work, 3)

    assert (encoder.batches, work.num_live) == ([[1], [3]], 0)


async def test_the_queue_is_bounded(work: EmbeddingWork, encoder: HeldEncoder) -> None:
    encoder.gate.clear()
    waiting = [ask(work, number) for number in range(3)]
    await hold(encoder)
    with pytest.raises(Overloaded):
        await work.vectors([[9]], is_background=False)
    encoder.gate.set()
    await asyncio.wait_for(asyncio.gather(*waiting), WAIT_S)


async def test_a_failure_is_told_and_the_next_request_succeeds(work: EmbeddingWork, encoder: HeldEncoder) -> None:
    encoder.error = RuntimeError("defect")
    with pytest.raises(InternalError):
        await ask(work, 1)

    assert (await ask(work, 2))[:, 0].tolist() == [2]
