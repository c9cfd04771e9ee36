"""The one way KV moves: a push of whole blocks into memory that the receiver reserved.

A transport owns a registration of this process's KV memory. It is driven by a single thread (the
transfer thread of ``services.worker``): no method blocks for longer than one post, and ``poll`` makes
all progress. Deadlines are kept by that thread, above this contract.

There is no abort: a posted push ends with ``PushDone`` or ``PushFailed``, never before the transport
stopped reading local memory for it; a push to a stopped peer may stay posted for as long as the peer is
stopped. ``PushFailed`` comes after the peer was removed here: whatever this process does later, no byte of
any push to it leaves any more, until it is connected anew. What had left may have landed, or still lie in the
kernels and the network between, which is why a receiver quarantines (see ``docs/architecture.md``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from services.errors import PeerError

MAX_NOTICE_BYTES = 1 << 20
"""Longest notice of one push."""

PushId = NewType("PushId", int)


@dataclass(frozen=True)
class Endpoint:
    """How a peer reaches this process's KV memory. ``metadata`` is opaque outside the transport."""

    transport: str
    agent: str
    """Unique per incarnation of a process."""
    fingerprint: str
    metadata: bytes


@dataclass(frozen=True)
class BlockPair:
    """One block to write: index in the sender's pool, index in the receiver's pool."""

    local: int
    remote: int


@dataclass(frozen=True)
class PushDone:
    """All bytes and the notice of a push are on their way; local memory is no longer read."""

    push: PushId


@dataclass(frozen=True)
class PushFailed:
    """A push ended without certainty that its bytes arrived; its peer is removed, local memory no longer read."""

    push: PushId
    error: PeerError


@dataclass(frozen=True)
class NoticeArrived:
    """A peer's push is complete in local memory, and this is what it said about it."""

    agent: str
    notice: bytes


@dataclass(frozen=True)
class PeerConnected:
    """The answer to ``connect``: pushes to ``agent`` can be posted."""

    agent: str


@dataclass(frozen=True)
class PeerLost:
    """A connection ended or could not be made; each outstanding push to ``agent`` gets its own ``PushFailed``."""

    agent: str
    error: PeerError


TransferEvent = PushDone | PushFailed | NoticeArrived | PeerConnected | PeerLost


class Transport(Protocol):
    """Moves blocks between the registered memories of two processes."""

    def endpoint(self) -> Endpoint:
        """Return what a peer needs to push here."""

    def connect(self, peer: Endpoint) -> None:
        """Begin to make pushes to ``peer`` possible; idempotent per agent name.

        Each call is answered by ``PeerConnected`` or ``PeerLost`` from ``poll``, unless it raises. A push may
        be posted before the answer came; it then shares the fate of the connection.

        Raises:
            IncompatiblePeer: another transport, layout fingerprint or block size.
            PeerGone: it is already known that the peer cannot be reached.
        """

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        """Post a write of ``blocks`` to a connected peer; ``notice`` becomes visible there after the data.

        Pushes that are outstanding together may arrive in any order, so none may overwrite another's blocks.
        Raising means that nothing was posted.

        Raises:
            PeerGone: not connected (any more).
            InvalidRequest: no blocks, a block index outside of either pool, or a notice that is too long.
            Overloaded: too many pushes to this peer are outstanding.
        """

    def poll(self) -> Sequence[TransferEvent]:
        """Make progress and return what happened since the last call, each event once; never waits."""

    def close(self) -> None:
        """Disconnect, deregister and free everything; idempotent."""
