"""What every transport refuses before the first byte."""

from collections.abc import Sequence

from services.errors import IncompatiblePeer, InvalidRequest
from services.transfer.transport import MAX_NOTICE_BYTES, BlockPair, Endpoint


def require_compatible(ours: Endpoint, peer: Endpoint) -> None:
    """Raise ``IncompatiblePeer`` unless ``peer`` speaks our transport and has our layout."""
    if peer.transport != ours.transport:
        raise IncompatiblePeer(f"Peer {peer.agent} uses transport {peer.transport!r}, not {ours.transport!r}.")
    if peer.fingerprint != ours.fingerprint:
        raise IncompatiblePeer(f"Peer {peer.agent} has layout {peer.fingerprint!r}, not {ours.fingerprint!r}.")


def require_equal_blocks(agent: str, ours: int, theirs: int) -> None:
    """Raise ``IncompatiblePeer`` unless both sides have blocks of the same number of bytes."""
    if ours != theirs:
        raise IncompatiblePeer(f"Peer {agent} has blocks of {theirs} bytes, not {ours}.")


def require_valid_push(blocks: Sequence[BlockPair], notice: bytes, num_local: int, num_remote: int) -> None:
    """Raise ``InvalidRequest`` unless the push names blocks of both pools and a notice of bearable length."""
    if not blocks:
        raise InvalidRequest("A push carries at least one block.", param="blocks")
    if len(blocks) > num_remote:
        raise InvalidRequest(f"A push of {len(blocks)} blocks exceeds the peer's {num_remote}.", param="blocks")
    if len(notice) > MAX_NOTICE_BYTES:
        raise InvalidRequest(f"A notice of {len(notice)} bytes exceeds {MAX_NOTICE_BYTES}.", param="notice")
    for pair in blocks:
        if not (0 <= pair.local < num_local and 0 <= pair.remote < num_remote):
            raise InvalidRequest(
                f"Blocks {pair.local} -> {pair.remote} lie outside of pools of {num_local} and {num_remote}.",
                param="blocks",
            )
