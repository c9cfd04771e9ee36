"""The twin inside one process: peers meet in an ``InProcessFabric`` and copy from pool to pool.

A push is posted by ``push`` and carried out by the sender's next ``poll``, so that, as with a network,
it can be outstanding while its sender or receiver changes its mind.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from services.errors import PeerGone
from services.transfer.checks import require_compatible, require_equal_blocks, require_valid_push
from services.transfer.memory import KVMemory
from services.transfer.transport import (
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

TRANSPORT_NAME = "inproc"


class InProcessFabric:
    """Where the transports of one process find each other; its lock serialises copies, joins and leaves."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.members: dict[str, InProcessTransport] = {}


class InProcessTransport:
    """Copies blocks between the pools of one process."""

    def __init__(self, *, agent: str, fingerprint: str, memory: KVMemory, fabric: InProcessFabric) -> None:
        self._endpoint = Endpoint(TRANSPORT_NAME, agent, fingerprint, metadata=b"")
        self._memory = memory
        self._fabric = fabric
        self._peers: dict[str, InProcessTransport] = {}
        self._posted: list[_Posted] = []
        self._events: list[TransferEvent] = []
        self._next_push = 0
        with fabric.lock:
            fabric.members[agent] = self

    def endpoint(self) -> Endpoint:
        """Return what a peer of the same fabric needs to push here."""
        return self._endpoint

    def connect(self, peer: Endpoint) -> None:
        """Look ``peer`` up in the fabric; ``Transport.connect`` says the rest."""
        require_compatible(self._endpoint, peer)
        with self._fabric.lock:
            member = self._fabric.members.get(peer.agent)
            if member is None:
                raise PeerGone(f"Peer {peer.agent} is not in this process.")
            require_equal_blocks(peer.agent, self._memory.block_bytes, member._memory.block_bytes)
            self._peers[peer.agent] = member
            self._events.append(PeerConnected(peer.agent))

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        """Post a copy; ``Transport.push`` says the rest."""
        peer = self._peers.get(agent)
        if peer is None:
            raise PeerGone(f"Peer {agent} is not connected.")
        require_valid_push(blocks, notice, self._memory.num_blocks, peer._memory.num_blocks)
        self._next_push += 1
        posted = _Posted(PushId(self._next_push), agent, tuple(blocks), bytes(notice))
        self._posted.append(posted)
        return posted.push

    def poll(self) -> Sequence[TransferEvent]:
        """Carry out what is posted and return what happened."""
        posted, self._posted = self._posted, []
        with self._fabric.lock:
            for push in posted:
                self._carry_out(push)
            events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Leave the fabric; pushes of others to this pool fail from now on."""
        with self._fabric.lock:
            if self._fabric.members.get(self._endpoint.agent) is self:
                del self._fabric.members[self._endpoint.agent]
        self._peers.clear()
        self._posted.clear()
        self._events.clear()

    def _carry_out(self, posted: "_Posted") -> None:
        peer = self._peers.get(posted.agent)
        if peer is None or self._fabric.members.get(posted.agent) is not peer:
            error = PeerGone(f"Peer {posted.agent} has left.")
            self._events.append(PushFailed(posted.push, error))
            if self._peers.pop(posted.agent, None) is not None:
                self._events.append(PeerLost(posted.agent, error))
            return
        for pair in posted.blocks:
            peer._memory.block(pair.remote)[:] = self._memory.block(pair.local)
        peer._events.append(NoticeArrived(self._endpoint.agent, posted.notice))
        self._events.append(PushDone(posted.push))


@dataclass(frozen=True)
class _Posted:
    push: PushId
    agent: str
    blocks: tuple[BlockPair, ...]
    notice: bytes
