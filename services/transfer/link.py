"""A non-blocking socket that reads into places which a script names, and sends what was queued.

The script is a generator: it yields the memory to fill next and continues once that is full. So a protocol
reads from top to bottom, and payload goes from the kernel straight to where it belongs.
"""

import socket
import struct
from collections import deque
from collections.abc import Generator
from itertools import islice

from services.errors import IncompatiblePeer, PeerGone
from services.transfer.handshake import LENGTH, MAX_MESSAGE_BYTES

Script = Generator[memoryview, None, None]
_BUFFERS_PER_SEND = 64
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: what the kernel has not sent when the socket is closed is thrown away."""


class Link:
    """One connection. ``deadline`` is when it must have proven itself (None: it has)."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.deadline: float | None = deadline
        self.is_closed = False
        self._outbox: deque[memoryview] = deque()
        self._script: Script | None = None
        self._wanted = memoryview(b"")

    @property
    def has_output(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._outbox)

    def follow(self, script: Script) -> None:
        """Read what ``script`` asks for from now on."""
        self._script = script
        self._advance()

    def send(self, *buffers: bytes | memoryview) -> None:
        """Queue bytes without copying them; ``write`` sends them."""
        self._outbox.extend(memoryview(buffer) for buffer in buffers if len(buffer))

    def read(self, budget: int) -> None:
        """Receive up to about ``budget`` bytes.

        Raises:
            PeerGone: the other side closed the connection.
            OSError: the connection failed.
        """
        while budget > 0:
            try:
                received = self.socket.recv_into(self._wanted)
            except (BlockingIOError, InterruptedError):
                return
            if received == 0:
                raise PeerGone("The peer closed the connection.")
            budget -= received
            self._wanted = self._wanted[received:]
            self._advance()

    def write(self, budget: int) -> None:
        """Send up to ``budget`` queued bytes.

        Raises:
            OSError: the connection failed.
        """
        while self._outbox and budget > 0:
            try:
                sent = self.socket.sendmsg(self._first_buffers(budget))
            except (BlockingIOError, InterruptedError):
                return
            budget -= sent
            self._discard(sent)

    def close(self) -> None:
        """Close the socket and forget what was not sent; idempotent."""
        self.is_closed = True
        self._outbox.clear()
        self._script = None
        self.socket.close()

    def abort(self) -> None:
        """Close the connection so that the kernel sends nothing of it any more, either; idempotent."""
        if not self.is_closed:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def _advance(self) -> None:
        while not len(self._wanted) and self._script is not None:
            self._wanted = next(self._script)

    def _first_buffers(self, num_bytes: int) -> list[memoryview]:
        buffers = []
        for buffer in islice(self._outbox, _BUFFERS_PER_SEND):
            buffers.append(buffer[:num_bytes])
            num_bytes -= len(buffer)
            if num_bytes <= 0:
                break
        return buffers

    def _discard(self, num_bytes: int) -> None:
        while num_bytes:
            first = self._outbox[0]
            if num_bytes < len(first):
                self._outbox[0] = first[num_bytes:]
                return
            num_bytes -= len(first)
            self._outbox.popleft()


def read_bytes(num_bytes: int) -> Generator[memoryview, None, bytes]:
    """Ask for ``num_bytes`` and return them."""
    buffer = bytearray(num_bytes)
    yield memoryview(buffer)
    return bytes(buffer)


def read_frame() -> Generator[memoryview, None, bytes]:
    """Ask for a length and as many bytes, and return these.

    Raises:
        IncompatiblePeer: longer than any message of the handshake.
    """
    (length,) = LENGTH.unpack((yield from read_bytes(LENGTH.size)))
    if length > MAX_MESSAGE_BYTES:
        raise IncompatiblePeer(f"A peer announced a message of {length} bytes.")
    return (yield from read_bytes(length))
