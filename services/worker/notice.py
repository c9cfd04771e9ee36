"""What a push says about itself: the notice that becomes visible after its data."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from services.engine.request import AttemptKey
from services.errors import IntegrityError
from services.kv.hashes import BlockHash
from services.rpc import tandem_pb2 as pb


@dataclass(frozen=True)
class Notice:
    """Binds written blocks to a request, an attempt, their tokens and their bytes."""

    attempt: AttemptKey
    first_block: int
    """Index, within the sequence, of the first block written."""
    token_digests: Sequence[BlockHash]
    payload_digests: Sequence[int]
    """xxh3-64 of each block's bytes; empty when digests are turned off."""

    def to_bytes(self) -> bytes:
        """Return the wire form."""
        return pb.Notice(
            request_id=self.attempt.request_id,
            epoch=self.attempt.epoch,
            first_block=self.first_block,
            token_digests=self.token_digests,
            payload_digests=self.payload_digests,
        ).SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Notice":
        """Read what ``to_bytes`` wrote.

        Raises:
            IntegrityError: not a notice.
        """
        try:
            message = pb.Notice.FromString(data)
        except DecodeError as error:
            raise IntegrityError("A peer sent a notice that cannot be read.") from error
        return cls(
            attempt=AttemptKey(message.request_id, message.epoch),
            first_block=message.first_block,
            token_digests=tuple(message.token_digests),
            payload_digests=tuple(message.payload_digests),
        )
