"""Bytes that are no request, and hostile requests, harm no embedding worker."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import numpy
import pytest

from services.embed.service import EmbeddingServicer
from services.embed.work import EmbeddingWork
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.errors import CODE_KEY
from services.rpc.server import new_server
from tests.chaos.fuzzing import Budget
from tests.chaos.hostile_messages import garbage, mutated
from tests.chaos.test_fuzz_grpc import CALL_DEADLINE_S, DEFECTS, EMBED, METADATA
from tests.embed.test_work import HeldEncoder
from tests.gateway.twins import card
from tests.inprocess.cluster import SECRET

CARD = card()
VALID = pb.EmbedRequest(
    fingerprint=CARD.fingerprint, sequences=[pb.TokenSequence(token_ids=[3, 4]), pb.TokenSequence(token_ids=[1])]
)
BUDGET = Budget(seed=20_260_826)
Call = Callable[[bytes], Awaitable[bytes]]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def call(runner: asyncio.Runner) -> Iterator[Call]:
    """Calls a worker whose encoder is a twin, with bytes."""
    stack = AsyncExitStack()

    async def serve() -> Call:
        work = await stack.enter_async_context(EmbeddingWork(HeldEncoder, max_batch_tokens=64, max_waiting=8))
        server = new_server(SECRET)
        tandem_pb2_grpc.add_EmbeddingServicer_to_server(EmbeddingServicer(CARD, work), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 1.0)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        stack.push_async_callback(channel.close)
        embed: Any = channel.unary_unary(EMBED)
        return lambda data: embed(data, timeout=CALL_DEADLINE_S, metadata=METADATA)

    yield runner.run(serve())
    runner.run(stack.aclose())


async def assert_ends_well(call: Call, data: bytes) -> None:
    """Answered, or refused with a code of ours; and the next request is answered."""
    try:
        await call(data)
    except grpc.aio.AioRpcError as error:
        assert error.code() not in DEFECTS, error.details()
        assert CODE_KEY in dict(error.trailing_metadata() or ()), error.details()
    reply = pb.EmbedReply.FromString(await call(VALID.SerializeToString()))
    vectors = numpy.frombuffer(reply.vectors, dtype="<f4").reshape(-1, reply.dimensions)
    assert vectors[:, 0].tolist() == [3.0, 1.0]


def test_bytes_that_are_no_request(runner: asyncio.Runner, call: Call) -> None:
    BUDGET.run(runner, garbage(VALID), lambda data: assert_ends_well(call, data), examples=25)


def test_requests_with_hostile_fields(runner: asyncio.Runner, call: Call) -> None:
    requests = mutated(VALID).map(lambda request: request.SerializeToString())
    BUDGET.run(runner, requests, lambda data: assert_ends_well(call, data), examples=60)
