"""A connection that is closed under a call, seen by the task that waits for the call."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.errors import PeerGone
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.server import new_server

SECRET = b"cluster secret"


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
