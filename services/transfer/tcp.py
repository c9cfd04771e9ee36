"""KV over plain TCP: for hosts without NIXL, and to tell a fault of NIXL from one of ours.

Each side listens; a connection carries the pushes of the side that opened it, and acknowledgements back.
Both prove knowledge of the cluster secret first (``handshake.py``); the payload itself is not encrypted.

    push:   push id u64 | number of blocks u32 | notice bytes u32 | block indexes u32 ... | notice | blocks ...
    answer: push id u64, once all blocks are in place and the notice is queued
"""

import errno
import ipaddress
import json
import os
import selectors
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.errors import ConfigurationError, IncompatiblePeer, Overloaded, PeerError, PeerGone, PeerStalled
from services.telemetry.clock import Clock, SystemClock
from services.telemetry.logs import get_logger
from services.transfer.checks import require_compatible, require_equal_blocks, require_valid_push
from services.transfer.handshake import NONCE_BYTES, WELCOME, Hello, frame, new_nonce, proof, require_proof
from services.transfer.link import Link, Script, read_bytes, read_frame
from services.transfer.memory import KVMemory
from services.transfer.transport import (
    MAX_NOTICE_BYTES,
    BlockPair,
    Endpoint,
    NoticeArrived,
    PeerConnected,
    PeerLost,
    PushDone,
    PushFailed,
    PushId,
    TransferEvent,
)

TRANSPORT_NAME = "tcp"
_PUSH = struct.Struct("<QII")
_ANSWER = struct.Struct("<Q")
_INDEX_BYTES = 4
_LAST_PORT = 65535
_BYTES_PER_POLL = 8 << 20
"""Most bytes read and written per connection and call, so that one peer cannot keep the others waiting."""
_MAX_STRANGERS = 64
"""Most incoming connections that have not proven themselves yet."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class TcpOptions:
    """Where to listen and how long to wait; addresses are numeric, since a look-up would block."""

    secret: bytes = field(repr=False)
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    advertised_host: str | None = None
    """Address that peers connect to; needed when ``listen_host`` is a wildcard."""
    handshake_timeout_s: float = 10.0
    unacknowledged_timeout_s: float = 60.0
    """How long the peer's kernel may leave sent bytes unacknowledged before the connection counts as dead."""
    max_outstanding_pushes: int = 256
    """Per peer."""

    def __post_init__(self) -> None:
        if not self.secret:
            raise ConfigurationError("The TCP transport needs the cluster secret.", param="secret")
        try:
            advertised = ipaddress.ip_address(self.advertised_host or self.listen_host)
        except ValueError as error:
            raise ConfigurationError(f"The TCP transport needs numeric addresses: {error}.") from error
        if advertised.is_unspecified:
            raise ConfigurationError("A wildcard listen_host needs an advertised_host.", param="advertised_host")


@dataclass
class _Peer:
    """A connection that we opened."""

    agent: str
    num_blocks: int
    link: Link
    outstanding: set[PushId] = field(default_factory=set)
    waiting: list[bytes | memoryview] = field(default_factory=list)
    """Pushes posted before the handshake ended."""


class TcpTransport:
    """Moves blocks over sockets, driven only by its callers."""

    def __init__(
        self, *, agent: str, fingerprint: str, memory: KVMemory, options: TcpOptions, clock: Clock | None = None
    ) -> None:
        """Listen.

        Raises:
            ConfigurationError: memory that the CPU cannot address, or an address that cannot be bound.
        """
        if memory.device != "cpu":
            raise ConfigurationError(f"The TCP transport cannot reach memory on {memory.device}.", param="device")
        self._memory = memory
        self._options = options
        self._clock = clock or SystemClock()
        self._listener = _listen(options)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._endpoint = Endpoint(TRANSPORT_NAME, agent, fingerprint, self._metadata())
        self._peers: dict[str, _Peer] = {}
        self._links: dict[Link, _Peer | None] = {}
        """Every connection; None for those that peers opened."""
        self._events: list[TransferEvent] = []
        self._next_push = 0
        self._is_closed = False

    def endpoint(self) -> Endpoint:
        """Return the address of the listener and the shape of the pool."""
        return self._endpoint

    def connect(self, peer: Endpoint) -> None:
        """Open a connection and begin the handshake; ``Transport.connect`` says the rest."""
        require_compatible(self._endpoint, peer)
        if self._is_closed:
            raise PeerGone("This transport is closed.")
        known = self._peers.get(peer.agent)
        if known is not None:
            if known.link.deadline is None:
                self._events.append(PeerConnected(peer.agent))
            return
        host, port, num_blocks, block_bytes = _decode_metadata(peer)
        require_equal_blocks(peer.agent, self._memory.block_bytes, block_bytes)
        connection = _begin_connection(peer.agent, host, port)
        _watch_for_death(connection, self._options)
        link = Link(connection, self._handshake_deadline())
        opened = _Peer(peer.agent, num_blocks, link)
        self._peers[peer.agent] = opened
        self._links[link] = opened
        self._selector.register(link.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, link)
        link.follow(self._initiate(opened))

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        """Queue a push and send what the socket takes at once; ``Transport.push`` says the rest."""
        peer = self._peers.get(agent)
        if peer is None:
            raise PeerGone(f"Peer {agent} is not connected.")
        require_valid_push(blocks, notice, self._memory.num_blocks, peer.num_blocks)
        if len(peer.outstanding) >= self._options.max_outstanding_pushes:
            raise Overloaded(f"{len(peer.outstanding)} pushes to {agent} are outstanding.")
        self._next_push += 1
        push = PushId(self._next_push)
        head = _PUSH.pack(push, len(blocks), len(notice)) + _encode_indexes(blocks) + notice
        payload = [self._memory.block(pair.local) for pair in blocks]
        peer.outstanding.add(push)
        if peer.link.deadline is None:
            peer.link.send(head, *payload)
            self._serve(peer.link, selectors.EVENT_WRITE)
        else:
            peer.waiting += [head, *payload]
        return push

    def poll(self) -> Sequence[TransferEvent]:
        """Accept, read and write whatever is possible now."""
        if self._is_closed:
            return ()
        for key, mask in self._selector.select(0):
            if key.data is None:
                self._accept()
            else:
                self._serve(key.data, mask)
        self._drop_unproven()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Close every connection and the listener; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for link, peer in self._links.items():
            if peer is None:
                link.close()
            else:
                link.abort()
        self._listener.close()
        self._selector.close()
        self._links.clear()
        self._peers.clear()
        self._events.clear()

    def _initiate(self, peer: _Peer) -> Script:
        """Say hello, prove ourselves, then read answers for ever."""
        secret = self._options.secret
        hello = Hello(self._endpoint.agent, peer.agent, self._endpoint.fingerprint).encode()
        peer.link.send(frame(hello))
        challenge = yield from read_frame()
        nonce = challenge[:NONCE_BYTES]
        require_proof(challenge[NONCE_BYTES:], proof(secret, "receiver", hello, nonce))
        peer.link.send(frame(proof(secret, "initiator", hello, nonce)))
        if (yield from read_frame()) != WELCOME:
            raise IncompatiblePeer(f"Peer {peer.agent} did not welcome us.")
        peer.link.deadline = None
        peer.link.send(*peer.waiting)
        peer.waiting.clear()
        self._events.append(PeerConnected(peer.agent))
        while True:
            (push,) = _ANSWER.unpack((yield from read_bytes(_ANSWER.size)))
            if push not in peer.outstanding:
                raise IncompatiblePeer(f"Peer {peer.agent} acknowledged a push that it was not sent.")
            peer.outstanding.remove(push)
            self._events.append(PushDone(push))

    def _receive(self, link: Link) -> Script:
        """Demand a proof, then take pushes for ever."""
        secret = self._options.secret
        body = yield from read_frame()
        hello = Hello.decode(body)
        if hello.receiver != self._endpoint.agent or hello.fingerprint != self._endpoint.fingerprint:
            raise IncompatiblePeer(f"{hello.initiator} wants {hello.receiver} with another layout or incarnation.")
        nonce = new_nonce()
        link.send(frame(nonce + proof(secret, "receiver", body, nonce)))
        require_proof((yield from read_frame()), proof(secret, "initiator", body, nonce))
        link.deadline = None
        link.send(frame(WELCOME))
        while True:
            push, count, notice_bytes = _PUSH.unpack((yield from read_bytes(_PUSH.size)))
            if not 0 < count <= self._memory.num_blocks or notice_bytes > MAX_NOTICE_BYTES:
                raise IncompatiblePeer(f"{hello.initiator} announced {count} blocks, a notice of {notice_bytes} bytes.")
            indexes = struct.unpack(f"<{count}I", (yield from read_bytes(count * _INDEX_BYTES)))
            if max(indexes) >= self._memory.num_blocks:
                raise IncompatiblePeer(f"{hello.initiator} named block {max(indexes)}.")
            notice = yield from read_bytes(notice_bytes)
            for index in indexes:
                yield self._memory.block(index)
            self._events.append(NoticeArrived(hello.initiator, notice))
            link.send(_ANSWER.pack(push))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        if sum(link.deadline is not None for link in self._links) >= _MAX_STRANGERS:
            connection.close()
            _log.warning("transfer_connection_refused", reason="too many unproven connections")
            return
        link = Link(connection, self._handshake_deadline())
        _watch_for_death(connection, self._options)
        self._links[link] = None
        self._selector.register(connection, selectors.EVENT_READ, link)
        link.follow(self._receive(link))

    def _serve(self, link: Link, mask: int) -> None:
        """Write and read; whatever goes wrong ends this connection only."""
        if link.is_closed:
            return
        try:
            if mask & selectors.EVENT_READ:
                link.read(_BYTES_PER_POLL)
            link.write(_BYTES_PER_POLL)
        except PeerError as error:
            self._drop(link, error)
        except OSError as error:
            self._drop(link, PeerGone(f"The connection failed: {error.strerror or error}."))
        else:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.has_output else 0)
            self._selector.modify(link.socket, events, link)

    def _drop(self, link: Link, error: PeerError) -> None:
        peer = self._links.pop(link)
        self._selector.unregister(link.socket)
        if peer is None:
            link.close()
            _log.event("transfer_sender_dropped", reason=error.message)
            return
        link.abort()
        if link.deadline is not None and isinstance(error, PeerGone):
            error = PeerGone(f"{peer.agent} did not let us in: {error.message}")
        del self._peers[peer.agent]
        self._events += [PushFailed(push, error) for push in sorted(peer.outstanding)]
        self._events.append(PeerLost(peer.agent, error))

    def _drop_unproven(self) -> None:
        now = self._clock.now()
        late = [link for link in self._links if link.deadline is not None and link.deadline <= now]
        for link in late:
            self._drop(link, PeerStalled("The handshake did not end in time."))

    def _handshake_deadline(self) -> float:
        return self._clock.now() + self._options.handshake_timeout_s

    def _metadata(self) -> bytes:
        values = {
            "host": self._options.advertised_host or self._options.listen_host,
            "port": self._listener.getsockname()[1],
            "num_blocks": self._memory.num_blocks,
            "block_bytes": self._memory.block_bytes,
        }
        return json.dumps(values).encode()


def _listen(options: TcpOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.listen_host else socket.AF_INET
    try:
        listener = socket.create_server((options.listen_host, options.listen_port), family=family)
    except OSError as error:
        where = f"{options.listen_host}:{options.listen_port}"
        raise ConfigurationError(f"The TCP transport cannot listen on {where}: {error}.") from error
    listener.setblocking(False)
    return listener


def _begin_connection(agent: str, host: str, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        outcome = connection.connect_ex((host, port))
    except OSError as error:  # an address with a scope that this host does not have
        connection.close()
        raise PeerGone(f"Peer {agent} cannot be reached: {error}.") from error
    if outcome not in (0, errno.EINPROGRESS):
        connection.close()
        raise PeerGone(f"Peer {agent} cannot be reached: {os.strerror(outcome)}.")
    return connection


def _watch_for_death(connection: socket.socket, options: TcpOptions) -> None:
    """Let the kernel notice a host that vanished, with or without bytes under way."""
    timeout_s = options.unacknowledged_timeout_s
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(timeout_s / 3)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(timeout_s / 6)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))


def _encode_indexes(blocks: Sequence[BlockPair]) -> bytes:
    return struct.pack(f"<{len(blocks)}I", *(pair.remote for pair in blocks))


def _decode_metadata(peer: Endpoint) -> tuple[str, int, int, int]:
    """Return host, port, number of blocks and bytes per block."""
    try:
        values = json.loads(peer.metadata)
        host, port = str(ipaddress.ip_address(str(values["host"]))), int(values["port"])
        if not 0 < port <= _LAST_PORT:
            raise ValueError(f"{port} is no port")
        return host, port, int(values["num_blocks"]), int(values["block_bytes"])
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise IncompatiblePeer(f"Peer {peer.agent} sent metadata that is not ours.") from error
