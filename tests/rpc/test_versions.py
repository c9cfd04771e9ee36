"""Two neighbouring versions of the wire talk to each other, in either direction; others are told apart."""

from typing import Any

import grpc
import pytest

from services.errors import IncompatiblePeer
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import SECRET_KEY, VERSION_KEY
from services.rpc.errors import from_rpc_error
from services.rpc.server import new_server
from services.rpc.versions import PROTOCOL_VERSION, understands

SECRET = b"cluster secret"


class Settler(tandem_pb2_grpc.KVServicer):
    async def Settle(self, request: pb.SettleRequest, context: Any) -> pb.SettleReply:
        return pb.SettleReply(anything_posted=True)


async def call(version: str | None) -> pb.SettleReply:
    """Call a server of this version as a client of another one does."""
    server = new_server(SECRET)
    tandem_pb2_grpc.add_KVServicer_to_server(Settler(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            metadata: list[tuple[str, str | bytes]] = [(SECRET_KEY, SECRET)]
            if version is not None:
                metadata.append((VERSION_KEY, version))
            reply = await tandem_pb2_grpc.KVStub(channel).Settle(pb.SettleRequest(), metadata=metadata)
            assert isinstance(reply, pb.SettleReply)
            return reply
    finally:
        await server.stop(None)


@pytest.mark.parametrize("difference", [-1, 0, 1])
async def test_callers_of_a_neighbouring_version_are_answered(difference: int) -> None:
    assert (await call(str(PROTOCOL_VERSION + difference))).anything_posted


@pytest.mark.parametrize("version", [None, "", "x", "-1", "1.0", str(PROTOCOL_VERSION + 2), "9" * 400])
async def test_others_are_refused(version: str | None) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(version)
    error = from_rpc_error(caught.value)
    assert isinstance(error, IncompatiblePeer)
    assert len(error.message) < 100


@pytest.mark.parametrize("own", [1, 2, 7])
def test_understanding_is_mutual(own: int) -> None:
    for other in range(10):
        assert understands(other, own) == understands(own, other) == (other in (own - 1, own, own + 1))
