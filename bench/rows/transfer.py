"""KV blocks over NIXL between two processes of one host, beside the same bytes as one large descriptor; and digests."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from bench.timing import best_cpu_s
from services.kv.digests import payload_digest
from services.transfer.memory import KVMemory, allocate
from services.transfer.open import open_transport
from services.transfer.transport import BlockPair, PeerConnected, PushDone, PushFailed, Transport

BLOCK_BYTES = 30 * 2 * 3 * 64 * 2 * 16
"""Of SmolLM2-135M: layers, planes, heads, width, bytes, tokens."""
NUM_BLOCKS = 125
"""2,000 tokens."""
DEADLINE_S = 30.0
_FINGERPRINT = "bench"


@dataclass(frozen=True)
class TransferFigures:
    """Milliseconds until the sender knows that all bytes have arrived; the best of several pushes."""

    blocks_ms: float
    whole_ms: float
    num_bytes: int

    @property
    def share(self) -> float:
        """What the blocks reach of the speed of one large descriptor, in per cent."""
        return 100 * self.whole_ms / self.blocks_ms


def measure(num_blocks: int = NUM_BLOCKS, rounds: int = 20, transport: str = "nixl") -> TransferFigures:
    """Push the same bytes as blocks and as one, in turn."""
    num_bytes = num_blocks * BLOCK_BYTES
    with _pair(transport, num_blocks, BLOCK_BYTES) as blocks, _pair(transport, 1, num_bytes) as whole:
        times = [(blocks.push_s(num_blocks), whole.push_s(1)) for _ in range(rounds)]
    return TransferFigures(1e3 * min(each[0] for each in times), 1e3 * min(each[1] for each in times), num_bytes)


def measure_digests(num_blocks: int = NUM_BLOCKS, rounds: int = 10) -> float:
    """Return milliseconds of CPU time that the digests of a prompt take, at its sender and at its receiver together."""
    memory = allocate(num_blocks, BLOCK_BYTES)
    blocks = [memory.block(index) for index in range(num_blocks)]
    return 2e3 * best_cpu_s(lambda: [payload_digest(block) for block in blocks], rounds)


class _Sender:
    """Our side; the other process polls until it is told to stop."""

    def __init__(self, transport: Transport, agent: str) -> None:
        self._transport = transport
        self._agent = agent

    def push_s(self, num_blocks: int) -> float:
        """Push the first blocks to the same places over there, and return how long it took."""
        pairs = [BlockPair(index, index) for index in range(num_blocks)]
        began = time.perf_counter()
        push = self._transport.push(self._agent, pairs, b"notice")
        self.wait_for(PushDone(push))
        return time.perf_counter() - began

    def wait_for(self, expected: object) -> None:
        """Poll until something happens.

        Raises:
            RuntimeError: a push failed, or the deadline passed.
        """
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            for event in self._transport.poll():
                if isinstance(event, PushFailed):
                    raise RuntimeError(f"A push failed: {event.error}")
                if event == expected:
                    return
        raise RuntimeError(f"{expected} did not come within {DEADLINE_S:g} s.")


@contextmanager
def _pair(kind: str, num_blocks: int, block_bytes: int) -> Iterator[_Sender]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    receiver = context.Process(target=_receive, args=(theirs, kind, num_blocks, block_bytes), daemon=True)
    receiver.start()
    memory = allocate(num_blocks, block_bytes)
    transport = _open(kind, f"sender-{num_blocks}", memory)
    try:
        if not ours.poll(DEADLINE_S):
            raise RuntimeError("The receiver did not start.")
        peer = ours.recv()
        sender = _Sender(transport, peer.agent)
        transport.connect(peer)
        sender.wait_for(PeerConnected(peer.agent))
        sender.push_s(num_blocks)
        yield sender
    finally:
        ours.send("stop")
        receiver.join(DEADLINE_S)
        receiver.kill()
        transport.close()


def _receive(connection: Connection, kind: str, num_blocks: int, block_bytes: int) -> None:
    memory = allocate(num_blocks, block_bytes)
    transport = _open(kind, f"receiver-{num_blocks}", memory)
    connection.send(transport.endpoint())
    while not connection.poll(0.0001):
        transport.poll()
    transport.close()


def _open(kind: str, agent: str, memory: KVMemory) -> Transport:
    return open_transport(kind, agent=agent, fingerprint=_FINGERPRINT, memory=memory)
