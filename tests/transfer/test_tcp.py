import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from services.errors import ConfigurationError, IncompatiblePeer, Overloaded, PeerStalled
from services.telemetry.clock import ManualClock
from services.transfer.handshake import LENGTH, NONCE_BYTES, WELCOME, Hello, frame, proof
from services.transfer.memory import allocate
from services.transfer.tcp import TcpOptions, TcpTransport
from services.transfer.transport import (
    BlockPair,
    Endpoint,
    NoticeArrived,
    PeerConnected,
    PeerLost,
    PushDone,
    PushFailed,
)
from tests.transfer.harness import BLOCK_BYTES, FINGERPRINT, NUM_BLOCKS, SECRET, Harness, Side, drive, harness, notices

METADATA_OF_OTHERS = [
    b"",
    b"[]",
    b"\xff",
    b"[" * 100_000,
    *(
        json.dumps(
            {"host": "127.0.0.1", "port": 1, "num_blocks": NUM_BLOCKS, "block_bytes": BLOCK_BYTES, **values}
        ).encode()
        for values in (
            {"host": "localhost"},
            {"host": 7},
            {"port": 0},
            {"port": 65_536},
            {"port": float("inf")},
            {"port": float("nan")},
            {"num_blocks": None},
        )
    ),
]
ALL_BLOCKS = [BlockPair(index, index) for index in range(NUM_BLOCKS)]


@pytest.fixture
def tcp() -> Iterator[Harness]:
    with harness("tcp") as opened:
        yield opened


class Impostor:
    """Speaks the protocol over a plain socket, as far as a test wants."""

    def __init__(self, target: Side, secret: str = SECRET) -> None:
        self._target = target
        endpoint = target.transport.endpoint()
        port = int(endpoint.metadata.split(b'"port": ')[1].split(b",")[0])
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self._secret = secret.encode()
        self._hello = Hello("impostor", endpoint.agent, endpoint.fingerprint)

    def __enter__(self) -> "Impostor":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def shake_hands(self) -> bytes:
        """Prove knowledge of the secret and return the last message, empty if the target hung up."""
        self.socket.sendall(frame(self._hello.encode()))
        challenge = self.receive_frame()
        self.socket.sendall(frame(proof(self._secret, "initiator", self._hello.encode(), challenge[:NONCE_BYTES])))
        return self.receive_frame()

    def receive_frame(self) -> bytes:
        head = self.receive(LENGTH.size)
        return self.receive(LENGTH.unpack(head)[0]) if head else b""

    def receive(self, num_bytes: int) -> bytes:
        """Return so many bytes, or nothing if the target hung up; the target is polled meanwhile."""
        received = bytearray()
        is_open = [True]

        def is_done() -> bool:
            try:
                part = self.socket.recv(num_bytes - len(received))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                part = b""
            received.extend(part)
            is_open[0] = bool(part)
            return not part or len(received) == num_bytes

        drive(self._target, is_done)
        return bytes(received) if is_open[0] else b""


class TestSecret:
    def test_an_initiator_with_another_secret_is_refused(self, tcp: Harness) -> None:
        here, stranger = tcp.open(), tcp.peer(secret="a guess")
        here.transport.connect(stranger.endpoint)
        posted = here.transport.push(stranger.endpoint.agent, ALL_BLOCKS, b"secret data")
        drive(here, lambda: here.of(PeerLost))
        assert [event.push for event in here.of(PushFailed)] == [posted]
        assert isinstance(here.of(PeerLost)[0].error, IncompatiblePeer)
        assert notices(stranger) == []

    def test_a_receiver_hangs_up_on_a_wrong_proof(self, tcp: Harness) -> None:
        here = tcp.open()
        with Impostor(here, secret="a guess") as impostor:
            assert impostor.shake_hands() == b""
        assert here.events == []

    def test_bytes_that_are_no_handshake_are_dropped(self, tcp: Harness) -> None:
        here = tcp.open()
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", frame(b"{}"), frame(b"[1]"), b"\xff" * 64):
            with Impostor(here) as impostor:
                impostor.socket.sendall(garbage)
                assert impostor.receive(1) == b""

    def test_a_hello_for_another_incarnation_is_dropped(self, tcp: Harness) -> None:
        here, peer = tcp.open(), tcp.peer()
        here.transport.connect(replace(peer.endpoint, agent="the previous one"))
        drive(here, lambda: here.of(PeerLost))
        assert not here.of(PeerConnected)


class TestReceiver:
    def test_blocks_outside_of_the_pool_cost_the_sender_its_connection(self, tcp: Harness) -> None:
        here = tcp.open()
        before = bytes(here.memory.view)
        for count, index, notice_bytes in ((1, NUM_BLOCKS, 0), (NUM_BLOCKS + 1, 0, 0), (0, 0, 0), (1, 0, 1 << 30)):
            with Impostor(here) as impostor:
                assert impostor.shake_hands() == WELCOME
                impostor.socket.sendall(struct.pack("<QII", 1, count, notice_bytes) + struct.pack("<I", index) * count)
                assert impostor.receive(1) == b""
        assert bytes(here.memory.view) == before
        assert here.of(NoticeArrived) == []

    def test_a_proven_sender_writes_what_it_names(self, tcp: Harness) -> None:
        here = tcp.open()
        with Impostor(here) as impostor:
            assert impostor.shake_hands() == WELCOME
            impostor.socket.setblocking(True)
            head = struct.pack("<QII", 77, 1, 2) + struct.pack("<I", 3) + b"ok"
            for part in (head[:5], head[5:], b"\1" * 10, b"\1" * (BLOCK_BYTES - 10)):
                impostor.socket.sendall(part)
                here.poll()
            impostor.socket.setblocking(False)
            assert struct.unpack("<Q", impostor.receive(8)) == (77,)
        assert bytes(here.memory.block(3)) == b"\1" * BLOCK_BYTES
        assert here.of(NoticeArrived) == [NoticeArrived("impostor", b"ok")]

    def test_a_sender_that_dies_within_a_push_announces_nothing(self, tcp: Harness) -> None:
        here = tcp.open()
        with Impostor(here) as impostor:
            impostor.shake_hands()
            impostor.socket.sendall(struct.pack("<QII", 1, 1, 0) + struct.pack("<I", 0) + b"\1" * 100)
        for _ in range(20):
            here.poll()
        assert here.events == []


class TestSender:
    def test_a_full_queue_is_refused_and_nothing_is_lost(self) -> None:
        options = TcpOptions(secret=SECRET.encode(), max_outstanding_pushes=3)
        memory = allocate(NUM_BLOCKS, BLOCK_BYTES)
        with harness("tcp") as tcp:
            here = Side(TcpTransport(agent="here", fingerprint=FINGERPRINT, memory=memory, options=options), memory)
            tcp.stack.callback(here.transport.close)
            peer = tcp.peer()
            peer.stop()
            here.transport.connect(peer.endpoint)
            for _ in range(3):
                here.transport.push(peer.endpoint.agent, ALL_BLOCKS, b"")
            with pytest.raises(Overloaded):
                here.transport.push(peer.endpoint.agent, ALL_BLOCKS, b"")
            peer.resume()
            drive(here, lambda: len(here.of(PushDone)) == 3)
            here.transport.push(peer.endpoint.agent, ALL_BLOCKS, b"")
            drive(here, lambda: len(here.of(PushDone)) == 4)

    def test_more_than_the_sockets_hold_waits_for_a_stopped_peer(self, tcp: Harness) -> None:
        large: dict[str, Any] = {"num_blocks": 64, "block_bytes": 1 << 20}
        here, peer = tcp.open(**large), tcp.peer(**large)
        here.memory.view[:] = bytes([5]) * here.memory.num_bytes
        here.transport.connect(peer.endpoint)
        drive(here, lambda: here.of(PeerConnected))
        peer.stop()
        here.transport.push(peer.endpoint.agent, [BlockPair(index, index) for index in range(64)], b"")
        for _ in range(100):
            here.poll()
        assert not here.of(PushDone)
        peer.resume()
        drive(here, lambda: here.of(PushDone))
        assert len(set(peer.ask("digests"))) == 1

    def test_a_handshake_that_does_not_end_fails_at_its_deadline(self, tcp: Harness) -> None:
        clock = ManualClock()
        memory = allocate(NUM_BLOCKS, BLOCK_BYTES)
        options = TcpOptions(secret=SECRET.encode(), handshake_timeout_s=10)
        transport = TcpTransport(agent="here", fingerprint=FINGERPRINT, memory=memory, options=options, clock=clock)
        here = Side(transport, memory)
        tcp.stack.callback(transport.close)
        peer = tcp.peer()
        peer.stop()
        transport.connect(peer.endpoint)
        posted = transport.push(peer.endpoint.agent, ALL_BLOCKS, b"")
        here.poll()
        clock.advance(9.9)
        here.poll()
        assert here.events == []
        clock.advance(0.2)
        here.poll()
        assert [event.push for event in here.of(PushFailed)] == [posted]
        assert isinstance(here.of(PeerLost)[0].error, PeerStalled)


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"secret": b""},
            {"secret": b"x", "listen_host": "0.0.0.0"},
            {"secret": b"x", "advertised_host": "worker-1.example"},
        ],
    )
    def test_refused_options(self, options: dict[str, bytes | str]) -> None:
        with pytest.raises(ConfigurationError):
            TcpOptions(**options)  # type: ignore[arg-type]

    def test_the_secret_is_not_shown(self) -> None:
        assert "hidden" not in repr(TcpOptions(secret=b"hidden"))

    def test_an_address_in_use_is_refused(self, tcp: Harness) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            options = TcpOptions(secret=b"x", listen_port=taken.getsockname()[1])
            with pytest.raises(ConfigurationError):
                TcpTransport(agent="a", fingerprint="f", memory=allocate(1, 1), options=options)

    @pytest.mark.parametrize("metadata", METADATA_OF_OTHERS)
    def test_metadata_of_somebody_else_is_refused(self, tcp: Harness, metadata: bytes) -> None:
        with pytest.raises(IncompatiblePeer):
            tcp.open().transport.connect(Endpoint("tcp", "x", FINGERPRINT, metadata))
