import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import pytest

from services.errors import IncompatiblePeer, Overloaded, PeerGone
from services.gateway.answering.decode_client import GrpcDecodeClient
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import WINDOW_BYTES, Channels
from tests.gateway.decode_server import SECRET, serving
from tests.gateway.twins import DecodeTwin, Script

REQUEST = pb.GenerateRequest(request_id="r", sampling=pb.SamplingParams(max_tokens=10))


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    made = Channels(SECRET)
    yield made
    await made.close()


async def kinds(client: GrpcDecodeClient, address: str) -> list[str | None]:
    async with aclosing(client.generate(address, REQUEST)) as events:
        return [event.WhichOneof("event") async for event in events]


async def test_events_come_through(channels: Channels) -> None:
    twin = DecodeTwin()
    twin.default = Script([5, 6])
    async with serving(twin) as address:
        assert await kinds(GrpcDecodeClient(channels), address) == ["accepted", "tokens", "tokens", "finished"]


async def test_a_workers_error_comes_out_as_the_same_class(channels: Channels) -> None:
    twin = DecodeTwin()
    twin.default = Script(refuse=Overloaded("full", retry_after_s=4))
    async with serving(twin) as address:
        with pytest.raises(Overloaded) as caught:
            await kinds(GrpcDecodeClient(channels), address)

    assert caught.value.retry_after_s == 4


async def test_closing_cancels_the_call_on_the_worker(channels: Channels) -> None:
    twin = DecodeTwin()
    twin.default = Script([5, 6], hang_after=1)
    async with serving(twin) as address:
        async with aclosing(GrpcDecodeClient(channels).generate(address, REQUEST)) as events:
            await anext(events)
            await twin.hanging.wait()
        async with asyncio.timeout(30):
            while not twin.num_closed:
                await asyncio.sleep(0.001)


async def test_a_reader_that_stops_makes_the_worker_wait(channels: Channels, caplog: pytest.LogCaptureFixture) -> None:
    request = pb.GenerateRequest(request_id="r", sampling=pb.SamplingParams(max_tokens=10**6))
    num_read, tokens_per_event, twin = 3000, 50, CountingTwin()
    twin.default = Script([5] * 10**6, step=tokens_per_event)
    async with serving(twin) as address, aclosing(GrpcDecodeClient(channels).generate(address, request)) as events:
        for _ in range(num_read):
            last = await anext(events)
        num_sent = await stable(lambda: twin.num_events)
        assert (num_sent - num_read) * last.ByteSize() <= 4 * WINDOW_BYTES  # the window, and what both sides hold
        await anext(events)
    assert "rpc.defect" not in caplog.messages


async def stable(number: Callable[[], int]) -> int:
    """Return a number that has stopped changing."""
    seen = [number()]
    async with asyncio.timeout(60):
        while len(seen) < 100 or seen[-1] != seen[-100]:
            await asyncio.sleep(0.005)
            seen.append(number())
    return seen[-1]


class CountingTwin(DecodeTwin):
    """Counts the events that it was rid of."""

    num_events = 0

    async def generate(self, address: str, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateEvent, None]:
        async with aclosing(super().generate(address, request)) as events:
            async for event in events:
                yield event
                self.num_events += 1


async def test_a_worker_that_is_not_there_is_gone(channels: Channels) -> None:
    with pytest.raises(PeerGone):
        await kinds(GrpcDecodeClient(channels), "127.0.0.1:1")


async def test_another_secret_is_not_the_callers_fault() -> None:
    strange = Channels(b"another secret of some length")
    async with serving(DecodeTwin()) as address:
        with pytest.raises(IncompatiblePeer):
            await kinds(GrpcDecodeClient(strange), address)
    await strange.close()
