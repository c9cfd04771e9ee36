"""A connection that is closed under a call, seen by the task that waits for the call."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.errors import PeerGone
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.liveness import is_address
from services.rpc.server import new_server

SECRET = b"cluster secret"
DEADLINE_S = 10.0


class Silent(tandem_pb2_grpc.PrefillServicer):
    async def Settle(self, request: pb.SettleRequest, context: Any) -> pb.SettleReply:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = new_server(SECRET)
    tandem_pb2_grpc.add_PrefillServicer_to_server(Silent(), server)  # type: ignore[abstract]
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
