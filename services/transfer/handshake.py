"""How two TCP peers prove to each other that they know the cluster secret, before anything else is read.

    initiator                                            receiver
        | hello: version, names of both, fingerprint, nonce ->|
        |<- challenge: nonce, proof("receiver") --------------|
        | proof("initiator") -------------------------------->|
        |<- welcome ------------------------------------------|

Each message is a 4-byte length and a body. A proof is HMAC-SHA256 under the secret over the role and the
transcript (hello, receiver's nonce), so that neither side's proof serves as the other's or in another
connection. A receiver that is not convinced closes the connection without a word.
"""

import hashlib
import hmac
import json
import secrets
import struct
from dataclasses import asdict, dataclass, field

from services.errors import IncompatiblePeer

PROTOCOL_VERSION = 1
NONCE_BYTES = 32
PROOF_BYTES = 32
MAX_MESSAGE_BYTES = 4096
LENGTH = struct.Struct("<I")
WELCOME = b"welcome"


@dataclass(frozen=True)
class Hello:
    """Who calls whom about which layout."""

    initiator: str
    receiver: str
    fingerprint: str
    nonce: str = field(default_factory=lambda: secrets.token_hex(NONCE_BYTES))
    version: int = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """Return the body of the message."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, body: bytes) -> "Hello":
        """Read what ``encode`` wrote.

        Raises:
            IncompatiblePeer: anything else.
        """
        try:
            values = json.loads(body)
            hello = cls(**values)
        except (ValueError, TypeError) as error:
            raise IncompatiblePeer("A peer sent a malformed hello.") from error
        texts = (hello.initiator, hello.receiver, hello.fingerprint, hello.nonce)
        if not all(isinstance(text, str) for text in texts) or hello.version != PROTOCOL_VERSION:
            raise IncompatiblePeer("A peer speaks another version of the protocol.")
        return hello


def new_nonce() -> bytes:
    """Return a nonce that was never used."""
    return secrets.token_bytes(NONCE_BYTES)


def proof(secret: bytes, role: str, hello: bytes, nonce: bytes) -> bytes:
    """Return what only somebody with ``secret`` can say in this connection in this role."""
    transcript = LENGTH.pack(len(hello)) + hello + nonce
    return hmac.new(secret, role.encode() + b"\0" + transcript, hashlib.sha256).digest()


def require_proof(given: bytes, expected: bytes) -> None:
    """Compare in constant time.

    Raises:
        IncompatiblePeer: the other side does not know the secret.
    """
    if not hmac.compare_digest(given, expected):
        raise IncompatiblePeer("A peer does not know the cluster secret.")


def frame(body: bytes) -> bytes:
    """Return ``body`` with its length in front."""
    return LENGTH.pack(len(body)) + body
