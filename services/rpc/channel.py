"""Client side of the wire: one channel per peer, the cluster secret and the protocol version in every call."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from services.errors import PeerGone
from services.rpc import tandem_pb2_grpc
from services.rpc.liveness import is_address
from services.rpc.tls import TLS_CHANNEL_OPTIONS, Pems, Tls
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.logs import get_logger

_log = get_logger(__name__)
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
    """Owns this process's outgoing connections; ``close`` ends them all.

    A connection that is not wanted any more, because its certificates were replaced or nobody belongs to the cluster
    at its address, is closed when the last call over it has ended.
    """

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
        self._opened: dict[str, _Opened] = {}
        self._retired: dict[_Opened, asyncio.Task[None]] = {}
        """Those that are closed when the last call over them has ended."""

    @property
    def num_open(self) -> int:
        """Connections that are not closed."""
        return len(self._opened) + len(self._retired)

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
        opened = self._current(address)
        with opened.in_use():
            while (state := opened.channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    hint = "" if self._tls is None else ", or does not accept our certificate, or we not its own"
                    raise PeerGone(f"{address} cannot be reached{hint}.")
                await opened.channel.wait_for_state_change(state)

    def health(self, address: str) -> health_pb2_grpc.HealthStub:
        """Return the health service at ``host:port``."""
        return health_pb2_grpc.HealthStub(self._channel(address))

    async def forget(self, address: str) -> None:
        """Close the connection to a peer that is gone for good, whatever runs over it."""
        opened = self._opened.pop(address, None)
        if opened is not None:
            await opened.channel.close()

    def keep_only(self, addresses: Collection[str]) -> None:
        """Close the connections to all other addresses, each when the last call over it has ended."""
        for address in self._opened.keys() - addresses:
            self._retire(self._opened.pop(address))

    async def close(self) -> None:
        """Close every connection."""
        for address in list(self._opened):
            await self.forget(address)
        while self._retired:
            opened, closing = self._retired.popitem()
            closing.cancel()
            await opened.channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        return self._current(address).channel

    def _current(self, address: str) -> "_Opened":
        pems = self._tls.current() if self._tls is not None else None
        opened = self._opened.get(address)
        if opened is not None and opened.pems != pems:
            self._retire(opened)
            opened = None
        if opened is None:
            opened = self._opened[address] = _Opened(address, pems, self._interceptors)
        return opened

    def _retire(self, opened: "_Opened") -> None:
        async def close() -> None:
            await opened.idle()
            await opened.channel.close()
            del self._retired[opened]
            _log.event("channel.closed", address=opened.address)

        self._retired[opened] = asyncio.create_task(close(), name=f"close the channel to {opened.address}")


class _Opened:
    """A channel, the certificates that it was opened with, and the number of its uses."""

    def __init__(
        self, address: str, pems: Pems | None, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()
    ) -> None:
        self.address = address
        self.pems = pems
        self._num_uses = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        all_interceptors = [*interceptors, _UnaryCount(self), _StreamCount(self)]
        if pems is None:
            self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=all_interceptors)
        else:
            options = (*CHANNEL_OPTIONS, *TLS_CHANNEL_OPTIONS)
            self.channel = grpc.aio.secure_channel(
                address, pems.channel_credentials(), options=options, interceptors=all_interceptors
            )

    async def idle(self) -> None:
        """Wait until nothing uses the channel; what was begun before counts, since its task runs before ours."""
        await self._is_idle.wait()

    def begin(self) -> None:
        """Count one more use."""
        self._num_uses += 1
        self._is_idle.clear()

    def end(self, call: object = None) -> None:
        """Count one less."""
        self._num_uses -= 1
        if not self._num_uses:
            self._is_idle.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count the block as a use."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    async def counted(self, calling: Any) -> Any:
        """Return the call that is being made; it counts until it ends."""
        self.begin()
        try:
            call = await calling
        except BaseException:
            self.end()
            raise
        call.add_done_callback(self.end)
        return call


class _UnaryCount(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, opened: _Opened) -> None:
        self._opened = opened

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._opened.counted(continuation(client_call_details, request))


class _StreamCount(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, opened: _Opened) -> None:
        self._opened = opened

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._opened.counted(continuation(client_call_details, request))


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
