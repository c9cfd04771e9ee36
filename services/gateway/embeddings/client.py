"""How the gateway calls embedding workers."""

from typing import Protocol

import grpc

from services.errors import AuthenticationFailed, IncompatiblePeer
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import from_rpc_error


class EmbeddingClient(Protocol):
    """Asks one embedding worker."""

    async def embed(self, address: str, request: pb.EmbedRequest, timeout_s: float) -> pb.EmbedReply:
        """Return the vectors.

        Raises:
            TandemError: what the worker raised.
            PeerGone: the connection was refused or reset.
            DeadlineExceeded: there was no answer in time.
        """


class GrpcEmbeddingClient:
    """Calls over ``channels``."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def embed(self, address: str, request: pb.EmbedRequest, timeout_s: float) -> pb.EmbedReply:
        """Return the vectors."""
        try:
            return await self._channels.embedding(address).Embed(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error)
            if isinstance(known, AuthenticationFailed):
                known = IncompatiblePeer("The embedding worker has another cluster secret or protocol version.")
            raise known from error
