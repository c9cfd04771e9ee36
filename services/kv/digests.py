"""Payload digests: proof that a block's bytes are those that the sender posted."""

import xxhash


def payload_digest(block: memoryview) -> int:
    """Return the 64-bit xxh3 digest of one block's bytes."""
    return int(xxhash.xxh3_64_intdigest(block))
