"""A connection that is closed under a call, seen by the task that waits for the call."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.errors import PeerGone
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.liveness import is_address
from services.rpc.server import new_server

SECRET = b"cluster secret"
DEADLINE_S = 30.0


class Silent(tandem_pb2_grpc.PrefillServicer):
    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def Connect(self, request: pb.ConnectRequest, context: Any) -> pb.ConnectReply:
        await self.may_answer.wait()
        return pb.ConnectReply(member_id="answered")

    async def Run(self, request: pb.RunRequest, context: Any) -> AsyncIterator[pb.RunEvent]:
        for _ in range(2):
            yield pb.RunEvent()
            await self.may_answer.wait()

    async def Settle(self, request: pb.SettleRequest, context: Any) -> pb.SettleReply:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture
async def address(silent: Silent) -> AsyncIterator[str]:
    server = new_server(SECRET)
    tandem_pb2_grpc.add_PrefillServicer_to_server(silent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def settle(channels: Channels, address: str) -> None:
    with translated():
        await channels.prefill(address).Settle(pb.SettleRequest())


async def test_forgetting_a_peer_is_an_error_of_its_calls_not_a_cancel_of_their_tasks(address: str) -> None:
    channels = Channels(SECRET)
    waiting = asyncio.create_task(settle(channels, address))
    await asyncio.sleep(0.01)
    await channels.forget(address)
    with pytest.raises(PeerGone):
        await waiting


async def test_a_cancelled_task_is_cancelled(address: str) -> None:
    channels = Channels(SECRET)
    waiting = asyncio.create_task(settle(channels, address))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await channels.close()


async def test_a_connection_is_made_without_a_call(address: str) -> None:
    channels = Channels(SECRET)
    async with asyncio.timeout(DEADLINE_S):
        await channels.connected(address)
        await channels.connected(address)
    await channels.close()


async def test_nobody_is_asked_where_nobody_listens(unused_tcp_port: int) -> None:
    channels = Channels(SECRET)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(PeerGone):
            await channels.connected(f"127.0.0.1:{unused_tcp_port}")
    await channels.close()


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", "host:0", "host:65536", "unix:/a", "dns:///a:1", "a\n:1", "::1:5"]
)
async def test_what_is_no_address_is_nobody(text: str) -> None:
    channels = Channels(SECRET)
    with pytest.raises(PeerGone):
        await channels.connected(text)


@pytest.mark.parametrize("text", ["127.0.0.1:1", "[::1]:50051", "worker-0.pool.svc:8000"])
def test_addresses_of_workers(text: str) -> None:
    assert is_address(text)


async def test_closing_ends_the_wait_for_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        channels = Channels(SECRET)
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        waiting = asyncio.create_task(channels.connected(address))
        await asyncio.sleep(0.01)
        await channels.forget(address)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(PeerGone):
                await waiting


async def test_of_addresses_that_are_not_kept_the_channel_closes_when_its_calls_have_ended(
    address: str, silent: Silent
) -> None:
    channels = Channels(SECRET)
    stub = channels.prefill(address)
    connecting = stub.Connect(pb.ConnectRequest(), timeout=DEADLINE_S)
    running = stub.Run(pb.RunRequest(), timeout=DEADLINE_S)
    assert await running.read() == pb.RunEvent()
    channels.keep_only([address])
    assert channels.num_open == 1
    late = stub.Run(pb.RunRequest(), timeout=DEADLINE_S)
    channels.keep_only([])
    channels.prefill(address)
    assert channels.num_open == 2
    silent.may_answer.set()
    assert (await connecting).member_id == "answered"
    for call in (running, late):
        while await call.read() is not grpc.aio.EOF:
            assert channels.num_open == 2
    async with asyncio.timeout(DEADLINE_S):
        while channels.num_open > 1:
            await asyncio.sleep(0)
    await channels.close()
    assert channels.num_open == 0


async def test_closing_ends_what_waits_for_the_end_of_calls(address: str) -> None:
    channels = Channels(SECRET)
    waiting = asyncio.create_task(settle(channels, address))
    await asyncio.sleep(0.01)
    channels.keep_only([])
    await channels.close()
    with pytest.raises(PeerGone):
        await waiting


async def test_a_call_that_failed_or_was_cancelled_holds_no_channel(address: str, unused_tcp_port: int) -> None:
    channels = Channels(SECRET)
    with pytest.raises(PeerGone):
        await settle(channels, f"127.0.0.1:{unused_tcp_port}")
    waiting = asyncio.create_task(settle(channels, address))
    await asyncio.sleep(0.01)
    channels.keep_only([])
    waiting.cancel()
    async with asyncio.timeout(DEADLINE_S):
        while channels.num_open:
            await asyncio.sleep(0)
