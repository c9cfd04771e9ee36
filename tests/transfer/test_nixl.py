import importlib
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest

from services.errors import ConfigurationError, IncompatiblePeer, PeerGone
from services.transfer.memory import KVMemory, allocate
from services.transfer.nixl import NixlOptions, NixlTransport
from services.transfer.signature import SIGNATURE_BYTES, signed
from services.transfer.transport import BlockPair, Endpoint, PeerConnected, PeerLost, PushDone, PushFailed
from tests.transfer.harness import FINGERPRINT, Harness, connect, drive, harness


@pytest.fixture
def nixl() -> Iterator[Harness]:
    with harness("nixl") as opened:
        yield opened


@pytest.mark.parametrize("ucx", [{"TLS": "tcp,cma"}, {"UCX_TLS": "tcp"}, {"TLS,NET_DEVICES": "x"}])
def test_settings_that_nixl_would_cut_apart_are_refused(ucx: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        NixlOptions(ucx=ucx).backend_parameters()


def test_settings_reach_the_backend_as_one_text() -> None:
    options = NixlOptions(ucx={"TLS": "tcp", "NET_DEVICES": "lo"}, num_threads=2)
    assert options.backend_parameters() == {
        "ucx_error_handling_mode": "peer",
        "engine_config": "TLS=tcp,NET_DEVICES=lo",
        "num_threads": "2",
    }


def test_without_nixl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", find_nothing)
    with pytest.raises(ConfigurationError, match="nixl-cu13"):
        NixlTransport(agent="a", fingerprint="f", memory=allocate(1, 4096))


def _signed(agent: str, body: bytes) -> bytes:
    return signed(NixlOptions().secret, agent, body)


def _unreachable(metadata: bytes) -> bytes:
    raise AssertionError("NIXL was handed metadata that it did not make.")


def test_an_unknown_device_is_refused() -> None:
    memory = allocate(1, 4096)
    tpu = KVMemory(memory.address, 1, 4096, memory.view, device="tpu:0")
    with pytest.raises(ConfigurationError, match="tpu"):
        NixlTransport(agent="a", fingerprint="f", memory=tpu)


@pytest.mark.parametrize("metadata", [b"", b"x" * 10, b"TNX1" + bytes(200), bytes(4000)])
@pytest.mark.parametrize("sign", [False, True])
def test_metadata_that_is_not_ours_is_refused(nixl: Harness, metadata: bytes, sign: bool) -> None:
    with pytest.raises(IncompatiblePeer):
        nixl.open().transport.connect(Endpoint("nixl", "x", FINGERPRINT, _signed("x", metadata) if sign else metadata))


def test_damaged_metadata_never_reaches_nixl_which_may_crash_on_it(
    nixl: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, peer = nixl.open(), nixl.peer()
    good = peer.endpoint.metadata
    assert isinstance(here.transport, NixlTransport)
    monkeypatch.setattr(here.transport._agent, "add_remote_agent", _unreachable)
    for position in range(len(good)):
        damaged = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        with pytest.raises(IncompatiblePeer, match="signature"):
            here.transport.connect(replace(peer.endpoint, metadata=damaged))


def test_metadata_of_another_cluster_is_refused(nixl: Harness) -> None:
    body = nixl.open().transport.endpoint().metadata[SIGNATURE_BYTES:]
    with pytest.raises(IncompatiblePeer, match="signature"):
        nixl.open().transport.connect(Endpoint("nixl", "x", FINGERPRINT, signed(b"another secret", "x", body)))


def test_metadata_that_nixl_cannot_read_is_a_peer_that_cannot_be_reached(nixl: Harness) -> None:
    here = nixl.open()
    body = here.transport.endpoint().metadata[SIGNATURE_BYTES:][:60] + b"nonsense" * 20
    with pytest.raises(PeerGone):
        here.transport.connect(Endpoint("nixl", "x", FINGERPRINT, _signed("x", body)))


def test_a_name_that_is_not_in_the_metadata_is_refused_and_leaves_nothing(nixl: Harness) -> None:
    here, peer = nixl.open(), nixl.peer()
    with pytest.raises(IncompatiblePeer):
        here.transport.connect(replace(peer.endpoint, agent="somebody else"))
    connect(here, peer)


def test_idle_dead_peers_are_found_when_another_one_joins(nixl: Harness) -> None:
    here = nixl.open()
    dead = [nixl.peer() for _ in range(2)]
    for peer in dead:
        connect(here, peer)
        peer.kill()
    drive(here, lambda: _tries_a_new_peer(nixl, here.transport, len(dead), here.of(PeerLost), here.of(PeerConnected)))
    assert {event.agent for event in here.of(PeerLost)} == {peer.endpoint.agent for peer in dead}
    with pytest.raises(PeerGone):
        here.transport.push(dead[0].endpoint.agent, [BlockPair(0, 0)], b"")


def test_a_failure_is_told_only_after_the_peer_was_removed(nixl: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    here, peer = nixl.open(), nixl.peer()
    connect(here, peer)
    assert isinstance(here.transport, NixlTransport)
    remove, told_before = here.transport._agent.remove_remote_agent, []

    def removed(agent: str) -> None:
        told_before.append((agent, here.of(PushFailed)))
        remove(agent)

    monkeypatch.setattr(here.transport._agent, "remove_remote_agent", removed)
    peer.stop()
    for _ in range(3):
        here.transport.push(peer.endpoint.agent, [BlockPair(0, 0)], b"")
    peer.kill()
    drive(here, lambda: here.of(PeerLost))
    assert told_before == [(peer.endpoint.agent, [])]
    assert len(here.of(PushFailed)) + len(here.of(PushDone)) == 3


def _tries_a_new_peer(
    nixl: Harness, transport: object, num_dead: int, lost: list[PeerLost], connected: list[PeerConnected]
) -> bool:
    assert isinstance(transport, NixlTransport)
    if len(lost) < num_dead and len(connected) < num_dead + 5:
        transport.connect(nixl.peer().endpoint)
    return len(lost) == num_dead
