"""Endpoint metadata that a native library reads is signed with the cluster secret: damaged bytes can crash it."""

import hashlib
import hmac

from services.errors import IncompatiblePeer

SIGNATURE_BYTES = 32


def signed(secret: bytes, agent: str, body: bytes) -> bytes:
    """Return ``body`` with the signature of ``agent`` in front."""
    return _signature(secret, agent, body) + body


def verified(secret: bytes, agent: str, data: bytes) -> bytes:
    """Return the body of what ``signed`` made.

    Raises:
        IncompatiblePeer: it is another agent's, was made with another secret, or has changed since.
    """
    body = data[SIGNATURE_BYTES:]
    if not hmac.compare_digest(data[:SIGNATURE_BYTES], _signature(secret, agent, body)):
        raise IncompatiblePeer(f"The metadata of {agent} does not carry its signature.")
    return body


def _signature(secret: bytes, agent: str, body: bytes) -> bytes:
    name = agent.encode()
    return hmac.new(secret, len(name).to_bytes(4, "little") + name + body, hashlib.sha256).digest()
