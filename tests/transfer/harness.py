"""What the conformance suite needs of a transport: how to open one here, and how to get a peer for it."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.memory import KVMemory, allocate
from services.transfer.nixl import NixlOptions
from services.transfer.open import TransportOptions, open_transport
from services.transfer.tcp import TcpOptions
from services.transfer.transport import Endpoint, NoticeArrived, PeerConnected, TransferEvent, Transport
from tests.transfer.peer_process import Peer, decode_endpoint, encode_endpoint

FINGERPRINT = "layout"
SECRET = "the cluster secret"
NUM_BLOCKS = 32
BLOCK_BYTES = 96 << 10
DEADLINE_S = 30.0
"""After this a test fails instead of hanging; nothing is measured by it."""


class RemotePeer(Protocol):
    """A peer as a test sees it."""

    endpoint: Endpoint

    def ask(self, what: str, **values: Any) -> Any: ...
    def progress(self) -> None: ...
    def stop(self) -> None: ...
    def resume(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class NoticeSeen:
    agent: str
    notice: bytes
    digests: list[str]


def notices(peer: RemotePeer) -> list[NoticeSeen]:
    return [
        NoticeSeen(seen["agent"], base64.b64decode(seen["notice"]), seen["digests"]) for seen in peer.ask("notices")
    ]


class ProcessPeer:
    """A peer in another process, which signals can stop and kill."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.transfer.peer_process", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.endpoint = decode_endpoint(self._read())

    def ask(self, what: str, **values: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": what, **values}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def progress(self) -> None:
        return

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class InProcessPeer:
    """A peer over the same fabric; stopped means that nobody polls it, killed that it left."""

    def __init__(self, transport: Transport, memory: KVMemory) -> None:
        self._transport = transport
        self._peer = Peer(transport, memory)
        self._is_stopped = False
        self.endpoint = transport.endpoint()

    def ask(self, what: str, **values: Any) -> Any:
        self.progress()
        answer = self._peer.answer({"ask": what, **values})
        self.progress()
        return answer

    def join(self, fabric: InProcessFabric) -> None:
        assert isinstance(self._transport, InProcessTransport)
        fabric.members[self.endpoint.agent] = self._transport

    def progress(self) -> None:
        if not self._is_stopped:
            self._peer.poll()

    def stop(self) -> None:
        self._is_stopped = True

    def resume(self) -> None:
        self._is_stopped = False

    def kill(self) -> None:
        self._is_stopped = True
        self._transport.close()

    def close(self) -> None:
        self.kill()


@dataclass
class Side:
    """Our own transport and what it said so far."""

    transport: Transport
    memory: KVMemory
    events: list[TransferEvent] = field(default_factory=list)

    def poll(self) -> None:
        self.events += self.transport.poll()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Harness:
    """Opens transports and peers of one kind and closes them."""

    name: str
    stack: ExitStack
    ucx: dict[str, str] = field(default_factory=dict)
    fabric: InProcessFabric = field(default_factory=InProcessFabric)
    count: int = 0
    foreign_sockets: set[str] = field(default_factory=lambda: set(_sockets()))

    def open(self, agent: str = "", **changes: Any) -> Side:
        shape = {"num_blocks": NUM_BLOCKS, "block_bytes": BLOCK_BYTES} | changes
        memory = allocate(shape["num_blocks"], shape["block_bytes"])
        transport = open_transport(
            self.name,
            agent=agent or self._new_name("here"),
            fingerprint=FINGERPRINT,
            memory=memory,
            options=TransportOptions(
                tcp=TcpOptions(secret=SECRET.encode()), nixl=NixlOptions(ucx=self.ucx), fabric=self.fabric
            ),
        )
        self.stack.enter_context(closing(transport))
        return Side(transport, memory)

    def peer(self, **changes: Any) -> RemotePeer:
        agent = self._new_name("peer")
        if self.name == "inproc":
            side = self.open(agent, **changes)
            return self.stack.enter_context(closing(InProcessPeer(side.transport, side.memory)))
        settings = {
            "transport": self.name,
            "agent": agent,
            "fingerprint": FINGERPRINT,
            "secret": SECRET,
            "num_blocks": NUM_BLOCKS,
            "block_bytes": BLOCK_BYTES,
            "ucx": self.ucx,
        }
        return self.stack.enter_context(closing(ProcessPeer(settings | changes)))

    def sever(self, peer: RemotePeer) -> None:
        """Break every connection of our transports while ``peer``, which stands for all peers, lives on."""
        if self.name == "inproc":
            del self.fabric.members[peer.endpoint.agent]
        for name, number in _sockets().items():
            if name not in self.foreign_sockets:
                with socket.socket(fileno=os.dup(number)) as connection, suppress(OSError):  # or one that only listens
                    connection.getpeername()
                    connection.shutdown(socket.SHUT_RDWR)

    def mend(self, peer: RemotePeer) -> None:
        """Let ``peer`` be found again after ``sever``."""
        if isinstance(peer, InProcessPeer):
            peer.join(self.fabric)

    def _new_name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}-{self.count}-{os.getpid()}"


def _sockets() -> dict[str, int]:
    """Return the sockets of this process, whoever opened them: a name that is not used twice, and the descriptor."""
    links = {number: _link(number) for number in os.listdir("/proc/self/fd")}
    return {name: int(number) for number, name in links.items() if name.startswith("socket:")}


def _link(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:  # the one that listed the folder
        return ""


@contextmanager
def harness(name: str, **changes: Any) -> Iterator[Harness]:
    with ExitStack() as stack:
        yield Harness(name, stack, **changes)


def drive(side: Side, until: Callable[[], object], peers: Sequence[RemotePeer] = ()) -> None:
    """Poll until ``until()`` is true, or fail."""
    deadline = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < deadline, f"nothing after {DEADLINE_S} s; events so far: {side.events}"
        side.poll()
        for peer in peers:
            peer.progress()


def connect(side: Side, peer: RemotePeer) -> None:
    before = len(side.of(PeerConnected))
    side.transport.connect(peer.endpoint)
    drive(side, lambda: len(side.of(PeerConnected)) > before, [peer])


def arrived(side: Side) -> list[tuple[str, bytes]]:
    return [(event.agent, event.notice) for event in side.of(NoticeArrived)]


__all__ = [
    "BLOCK_BYTES",
    "FINGERPRINT",
    "NUM_BLOCKS",
    "SECRET",
    "Harness",
    "RemotePeer",
    "Side",
    "arrived",
    "connect",
    "drive",
    "encode_endpoint",
    "harness",
    "notices",
]
