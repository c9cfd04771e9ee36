"""Client side of the wire: one channel per peer, the cluster secret and the protocol version in every call."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from services.rpc import tandem_pb2_grpc

PROTOCOL_VERSION = 1
SECRET_KEY = "tandem-secret-bin"
VERSION_KEY = "tandem-protocol"
MAX_MESSAGE_BYTES = 16 * 2**20

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel makes a new connection, whatever became of an older one
)


class Channels:
    """Owns this process's outgoing connections; ``close`` ends them all."""

    def __init__(self, secret: bytes, *, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()) -> None:
        metadata = ((SECRET_KEY, secret), (VERSION_KEY, str(PROTOCOL_VERSION)))
        self._interceptors: list[grpc.aio.ClientInterceptor] = [
            _UnaryCredentials(metadata),
            _StreamCredentials(metadata),
            *interceptors,
        ]
        self._channels: dict[str, grpc.aio.Channel] = {}

    def decode(self, address: str) -> "tandem_pb2_grpc.DecodeAsyncStub":
        """Return the decode service at ``host:port``."""
        return tandem_pb2_grpc.DecodeStub(self._channel(address))

    def prefill(self, address: str) -> "tandem_pb2_grpc.PrefillAsyncStub":
        """Return the prefill service at ``host:port``."""
        return tandem_pb2_grpc.PrefillStub(self._channel(address))

    def admin(self, address: str) -> "tandem_pb2_grpc.AdminAsyncStub":
        """Return the admin service at ``host:port``."""
        return tandem_pb2_grpc.AdminStub(self._channel(address))

    def health(self, address: str) -> health_pb2_grpc.HealthStub:
        """Return the health service at ``host:port``."""
        return health_pb2_grpc.HealthStub(self._channel(address))

    async def forget(self, address: str) -> None:
        """Close the connection to a peer that is gone for good."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        """Close every connection."""
        for address in list(self._channels):
            await self.forget(address)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(
                address, options=CHANNEL_OPTIONS, interceptors=self._interceptors
            )
        return self._channels[address]


_Metadata = tuple[tuple[str, str | bytes], ...]


class _Credentials:
    def __init__(self, metadata: _Metadata) -> None:
        self._metadata = metadata

    def _signed(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._metadata)
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _UnaryCredentials(_Credentials, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._signed(client_call_details), request)


class _StreamCredentials(_Credentials, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._signed(client_call_details), request)
