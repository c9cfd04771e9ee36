"""Client side of the wire: one channel per peer, the cluster secret and the protocol version in every call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from services.errors import PeerGone
from services.rpc import tandem_pb2_grpc
from services.rpc.liveness import is_address
from services.rpc.tls import TLS_CHANNEL_OPTIONS, Pems, Tls
from services.rpc.versions import PROTOCOL_VERSION

SECRET_KEY = "tandem-secret-bin"
VERSION_KEY = "tandem-protocol"
MAX_MESSAGE_BYTES = 16 * 2**20
"""A prompt of three million tokens; of what is larger the receiver reads no more than its length."""
WINDOW_BYTES = 64 * 1024
"""What may be on its way in one stream, unread: a sender waits for a reader that is slower. By default gRPC lets the
window grow to megabytes, for each stream that is not read."""
MAX_METADATA_BYTES = 16 * 2**10
"""Ours is the secret, the version and, on the way back, an error of at most a thousand characters."""

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel makes a new connection, whatever became of an older one
)


class Channels:
    """Owns this process's outgoing connections; ``close`` ends them all."""

    def __init__(
        self, secret: bytes, tls: Tls | None = None, *, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()
    ) -> None:
        self._tls = tls
        metadata = ((SECRET_KEY, secret), (VERSION_KEY, str(PROTOCOL_VERSION)))
        self._interceptors: list[grpc.aio.ClientInterceptor] = [
            _UnaryCredentials(metadata),
            _StreamCredentials(metadata),
            *interceptors,
        ]
        self._channels: dict[str, _Opened] = {}
        self._outdated: list[grpc.aio.Channel] = []
        """Opened with certificates that were replaced; calls that run over them go on."""

    def decode(self, address: str) -> "tandem_pb2_grpc.DecodeAsyncStub":
        """Return the decode service at ``host:port``."""
        return tandem_pb2_grpc.DecodeStub(self._channel(address))

    def prefill(self, address: str) -> "tandem_pb2_grpc.PrefillAsyncStub":
        """Return the prefill service at ``host:port``."""
        return tandem_pb2_grpc.PrefillStub(self._channel(address))

    def kv(self, address: str) -> "tandem_pb2_grpc.KVAsyncStub":
        """Return the service at ``host:port`` that pushes blocks by name."""
        return tandem_pb2_grpc.KVStub(self._channel(address))

    def embedding(self, address: str) -> "tandem_pb2_grpc.EmbeddingAsyncStub":
        """Return the embedding service at ``host:port``."""
        return tandem_pb2_grpc.EmbeddingStub(self._channel(address))

    def admin(self, address: str) -> "tandem_pb2_grpc.AdminAsyncStub":
        """Return the admin service at ``host:port``."""
        return tandem_pb2_grpc.AdminStub(self._channel(address))

    async def connected(self, address: str) -> None:
        """Return once there is a connection to ``host:port``; until then nothing was asked of anybody there.

        Raises:
            PeerGone: it cannot be reached now, or the address is none.
        """
        if not is_address(address):
            raise PeerGone(f"{address!r} is not the address of a worker.")
        channel = self._channel(address)
        while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                hint = "" if self._tls is None else ", or does not accept our certificate, or we do not accept its own"
                raise PeerGone(f"{address} cannot be reached{hint}.")
            await channel.wait_for_state_change(state)

    def health(self, address: str) -> health_pb2_grpc.HealthStub:
        """Return the health service at ``host:port``."""
        return health_pb2_grpc.HealthStub(self._channel(address))

    async def forget(self, address: str) -> None:
        """Close the connection to a peer that is gone for good."""
        opened = self._channels.pop(address, None)
        if opened is not None:
            await opened.channel.close()

    async def close(self) -> None:
        """Close every connection."""
        for address in list(self._channels):
            await self.forget(address)
        while self._outdated:
            await self._outdated.pop().close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        pems = self._tls.current() if self._tls is not None else None
        opened = self._channels.get(address)
        if opened is not None and opened.pems != pems:
            self._outdated.append(opened.channel)
            opened = None
        if opened is None:
            opened = self._channels[address] = _Opened(pems, self._open(address, pems))
        return opened.channel

    def _open(self, address: str, pems: Pems | None) -> grpc.aio.Channel:
        if pems is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=self._interceptors)
        options = (*CHANNEL_OPTIONS, *TLS_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(
            address, pems.channel_credentials(), options=options, interceptors=self._interceptors
        )


@dataclass(frozen=True)
class _Opened:
    pems: Pems | None
    channel: grpc.aio.Channel


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
