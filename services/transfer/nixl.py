"""KV over NIXL 1.5 with UCX: one registered pool, one WRITE per push, its notice riding on it.

What NIXL does when a peer stops, dies or comes back was measured (``docs/decisions/0002``), and shapes this file:

- A write is done only when the peer made progress, so a stopped peer keeps it in progress. It stays posted
  here: releasing such a handle, or removing the peer, frees nothing, and its bytes still land later.
- A dead peer, or a connection that broke, surfaces as an exception of the next post or state. From then on
  nothing is pushed to it; its other pushes end one by one, and after the last one the peer is removed. Only then
  are the failures told. A restarted process comes back under a new agent name.
- A failed post may have written a part, so it ends as ``PushFailed`` and does not raise.
- Nothing tells that an idle peer died. Whenever a peer is connected, the others get a hello; those that
  cannot take it are removed, so that dead incarnations do not pile up.
"""

import importlib
import logging
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from services.errors import ConfigurationError, IncompatiblePeer, PeerError, PeerGone
from services.telemetry.logs import get_logger
from services.transfer.checks import require_compatible, require_equal_blocks, require_valid_push
from services.transfer.memory import KVMemory
from services.transfer.signature import signed, verified
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

TRANSPORT_NAME = "nixl"
_PACKAGES = ("nixl_cu13", "nixl_cu12")
_HELLO = b"H"
_NOTICE = b"N"
_log = get_logger(__name__)


@dataclass(frozen=True)
class NixlOptions:
    """How UCX is set up.

    ``ucx`` are UCX settings without their ``UCX_`` prefix, such as ``{"TLS": "tcp", "NET_DEVICES": "eth0"}``.
    NIXL hands them on as one comma-separated text, so a value with a comma can only come from the environment
    in which the process is started; there, a variable ``UCX_...`` wins over the same setting here. The default,
    nothing, lets UCX choose for each pair of processes among what both hosts have (RDMA, NVLink, shared memory,
    TCP). ``num_threads`` > 0 gives the backend that many threads of its own.
    """

    ucx: Mapping[str, str] = field(default_factory=dict)
    num_threads: int = 0
    secret: bytes = field(default=b"", repr=False)
    """The cluster secret, which signs the metadata of endpoints: NIXL can crash on bytes that it did not make."""

    def backend_parameters(self) -> dict[str, str]:
        """Return the parameters of NIXL's UCX backend.

        Raises:
            ConfigurationError: a setting that NIXL cannot hand on.
        """
        for name, value in self.ucx.items():
            if name.startswith("UCX_") or "," in name + value or "=" in name:
                raise ConfigurationError(
                    f"UCX setting {name}={value!r} cannot be passed to NIXL: set UCX_{name.removeprefix('UCX_')} "
                    "in the environment of the process.",
                    param="ucx",
                )
        parameters = {"ucx_error_handling_mode": "peer"}
        if self.ucx:
            parameters["engine_config"] = ",".join(f"{name}={value}" for name, value in self.ucx.items())
        if self.num_threads:
            parameters["num_threads"] = str(self.num_threads)
        return parameters


@dataclass(frozen=True)
class _Pool:
    """A pool as its peers address it: a head of fixed size, then NIXL's own metadata."""

    address: int
    num_blocks: int
    block_bytes: int
    segment: str
    device_index: int
    agent_metadata: bytes

    _HEAD = struct.Struct("<4sQQQ4sI")
    _MAGIC = b"TNX1"

    def encode(self) -> bytes:
        head = (self.address, self.num_blocks, self.block_bytes, self.segment.encode(), self.device_index)
        return self._HEAD.pack(self._MAGIC, *head) + self.agent_metadata

    @classmethod
    def decode(cls, agent: str, metadata: bytes) -> "_Pool":
        if len(metadata) <= cls._HEAD.size or not metadata.startswith(cls._MAGIC):
            raise IncompatiblePeer(f"Peer {agent} sent metadata that is not ours.")
        _, address, num_blocks, block_bytes, segment, device_index = cls._HEAD.unpack_from(metadata)
        if segment not in (b"DRAM", b"VRAM") or not num_blocks:
            raise IncompatiblePeer(f"Peer {agent} sent metadata of an unknown kind of memory.")
        return cls(address, num_blocks, block_bytes, segment.decode(), device_index, metadata[cls._HEAD.size :])

    def descriptors(self) -> Any:
        """Return all blocks in NIXL's compressed form, ``[1, 5]``: address, bytes, device, stride, count."""
        row = (self.address, self.block_bytes, self.device_index, self.block_bytes, self.num_blocks)
        return np.array([row], dtype=np.uint64)


@dataclass
class _Peer:
    pool: _Pool
    blocks: Any
    """Prepared descriptor list of the peer's blocks."""


@dataclass
class _Leaving:
    """A lost peer: what is to be released, and what is told once it is removed."""

    peer: _Peer
    lost: PeerLost
    failures: list[PushFailed] = field(default_factory=list)


@dataclass
class _Posted:
    agent: str
    handle: Any


class NixlTransport:
    """Writes blocks into peers' registered memory with NIXL; makes progress only inside its own methods.

    Memory on ``cuda`` devices is registered as VRAM; that path has not run on a GPU yet.
    """

    def __init__(self, *, agent: str, fingerprint: str, memory: KVMemory, options: NixlOptions | None = None) -> None:
        """Open an agent, register ``memory`` once and prepare its descriptors.

        Raises:
            ConfigurationError: NIXL is missing, refuses the settings, or cannot register the memory.
        """
        package = _load_package()
        options = options or NixlOptions()
        self._errors = _error_types(package)
        self._secret = options.secret
        self._memory = memory
        segment, device_index = _segment_of(memory.device)
        try:
            config = package.nixl_agent_config(enable_prog_thread=False, backends=[])
            self._agent = package.nixl_agent(agent, config)
            self._agent.create_backend("UCX", options.backend_parameters())
            region = (memory.address, memory.num_bytes, device_index, "")
            self._registration = self._agent.register_memory([region], segment)
            metadata = self._agent.get_agent_metadata()
            pool = _Pool(memory.address, memory.num_blocks, memory.block_bytes, segment, device_index, metadata)
            self._blocks = self._agent.prep_xfer_dlist("NIXL_INIT_AGENT", pool.descriptors(), segment)
        except self._errors as error:
            raise ConfigurationError(f"NIXL cannot use {memory.num_bytes} bytes of {memory.device}: {error}") from error
        self._endpoint = Endpoint(TRANSPORT_NAME, agent, fingerprint, signed(self._secret, agent, pool.encode()))
        self._peers: dict[str, _Peer] = {}
        self._leaving: dict[str, _Leaving] = {}
        self._posted: dict[PushId, _Posted] = {}
        self._events: list[TransferEvent] = []
        self._next_push = 0
        self._is_closed = False

    def endpoint(self) -> Endpoint:
        """Return the registered pool and NIXL's metadata for peers."""
        return self._endpoint

    def connect(self, peer: Endpoint) -> None:
        """Add the peer's agent and warm the path to it; ``Transport.connect`` says the rest."""
        require_compatible(self._endpoint, peer)
        if self._is_closed or peer.agent in self._leaving:
            raise PeerGone(f"The connection to {peer.agent} is being closed.")
        if peer.agent not in self._peers:
            self._greet_idle_peers()
            self._peers[peer.agent] = self._add(peer)
        self._events.append(PeerConnected(peer.agent))
        self._greet(peer.agent)

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        """Post one WRITE; on one host it copies inside this call. ``Transport.push`` says the rest."""
        peer = self._peers.get(agent)
        if peer is None:
            raise PeerGone(f"Peer {agent} is not connected.")
        require_valid_push(blocks, notice, self._memory.num_blocks, peer.pool.num_blocks)
        try:
            handle = self._agent.make_prepped_xfer(
                "WRITE",
                self._blocks,
                np.fromiter((pair.local for pair in blocks), dtype=np.int32, count=len(blocks)),
                peer.blocks,
                np.fromiter((pair.remote for pair in blocks), dtype=np.int32, count=len(blocks)),
                _NOTICE + notice,
            )
        except self._errors as error:
            gone = PeerGone(f"NIXL refused a push to {agent}: {error}")
            self._lose(agent, gone)
            raise gone from error
        self._next_push += 1
        push = PushId(self._next_push)
        self._posted[push] = _Posted(agent, handle)
        self._advance(push, self._agent.transfer)
        return push

    def poll(self) -> Sequence[TransferEvent]:
        """Make NIXL progress; collect notices and the states of posted pushes."""
        if self._is_closed:
            return ()
        for agent, messages in self._agent.get_new_notifs().items():
            name = agent if isinstance(agent, str) else agent.decode()
            self._events += [NoticeArrived(name, message[1:]) for message in messages if message[:1] == _NOTICE]
        for push in tuple(self._posted):
            self._advance(push, self._agent.check_xfer_state)
        self._remove_ended_peers()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Remove peers, deregister the pool and drop the agent; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for posted in self._posted.values():
            self._quietly("release", posted.handle.release)
        self._posted.clear()
        for agent in tuple(self._peers):
            self._lose(agent, PeerGone("This transport is closed."))
        self._remove_ended_peers()
        self._quietly("release blocks", self._blocks.release)
        self._quietly("deregister", lambda: self._agent.deregister_memory(self._registration))
        self._events.clear()
        del self._agent

    def _add(self, peer: Endpoint) -> _Peer:
        pool = _Pool.decode(peer.agent, verified(self._secret, peer.agent, peer.metadata))
        require_equal_blocks(peer.agent, self._memory.block_bytes, pool.block_bytes)
        try:
            name = self._agent.add_remote_agent(pool.agent_metadata).decode()
        except self._errors as error:
            raise PeerGone(f"NIXL cannot reach {peer.agent}: {error}") from error
        if name != peer.agent:
            self._quietly("remove", lambda: self._agent.remove_remote_agent(name))
            raise IncompatiblePeer(f"The metadata of {peer.agent} is that of {name}.")
        try:
            return _Peer(pool, self._agent.prep_xfer_dlist(name, pool.descriptors(), pool.segment))
        except self._errors as error:
            self._quietly("remove", lambda: self._agent.remove_remote_agent(name))
            raise IncompatiblePeer(f"The memory of {peer.agent} is not what it registered: {error}") from error

    def _greet_idle_peers(self) -> None:
        busy = {posted.agent for posted in self._posted.values()}
        for agent in [agent for agent in self._peers if agent not in busy]:
            self._greet(agent)

    def _greet(self, agent: str) -> None:
        try:
            self._agent.send_notif(agent, _HELLO)
        except self._errors as error:
            self._lose(agent, PeerGone(f"Peer {agent} cannot be reached: {error}"))

    def _advance(self, push: PushId, ask: Any) -> None:
        """Post a push or ask for its state, and turn an end into an event."""
        posted = self._posted[push]
        try:
            state = ask(posted.handle)
        except self._errors as error:
            self._fail(push, PeerGone(f"A push to {posted.agent} failed: {error}"))
            return
        if state == "DONE":
            self._forget(push)
            self._events.append(PushDone(push))
        elif state != "PROC":
            self._fail(push, PeerGone(f"A push to {posted.agent} ended as {state}."))

    def _fail(self, push: PushId, error: PeerError) -> None:
        agent = self._posted[push].agent
        self._forget(push)
        self._lose(agent, error)
        self._leaving[agent].failures.append(PushFailed(push, error))

    def _forget(self, push: PushId) -> None:
        self._quietly("release", self._posted.pop(push).handle.release)

    def _lose(self, agent: str, error: PeerError) -> None:
        peer = self._peers.pop(agent, None)
        if peer is not None:
            self._leaving[agent] = _Leaving(peer, PeerLost(agent, error))

    def _remove_ended_peers(self) -> None:
        busy = {posted.agent for posted in self._posted.values()}
        for agent in self._leaving.keys() - busy:
            leaving = self._leaving.pop(agent)
            self._quietly("release descriptors", leaving.peer.blocks.release)
            self._quietly("remove", partial(self._agent.remove_remote_agent, agent))
            self._events += [*leaving.failures, leaving.lost]

    def _quietly(self, what: str, action: Any) -> None:
        """Run a clean-up whose failure changes nothing for us: NIXL itself forgets a peer that it saw dying."""
        try:
            action()
        except self._errors as error:
            _log.event("nixl_cleanup_refused", level=logging.DEBUG, what=what, reason=type(error).__name__)


def _load_package() -> ModuleType:
    for name in _PACKAGES:
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ConfigurationError(f"{name} is installed but lacks {error.name}.", param="transport") from error
            continue
        _quieten(logging.getLogger("nixl"))
        return package
    raise ConfigurationError(
        "Transport 'nixl' needs the package nixl-cu13 (Linux on x86_64 or aarch64); install it or choose 'tcp'.",
        param="transport",
    )


def _quieten(logger: logging.Logger) -> None:
    """Send NIXL's own log where ours goes; it writes to standard output by default."""
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _error_types(package: ModuleType) -> tuple[type[Exception], ...]:
    """Return the exceptions that NIXL's bindings raise; they share no base class of their own."""
    bindings = importlib.import_module(f"{package.__name__}._bindings")
    return tuple(getattr(bindings, name) for name in dir(bindings) if name.endswith("Error"))


def _segment_of(device: str) -> tuple[str, int]:
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return "DRAM", 0
    if kind == "cuda" and (index or "0").isdigit():
        return "VRAM", int(index or 0)
    raise ConfigurationError(f"NIXL cannot use memory on device {device!r}.", param="device")
