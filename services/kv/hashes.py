"""Chained hashes of the token ids in a block: its name in the prefix cache and its token digest on the wire.

``hash[i] = blake2b-128(hash[i - 1] + ids as little-endian uint32)``, where ``hash[-1]`` is a seed made
from the layout fingerprint, the adapter and the project. Two blocks with the same hash hold KV of the
same tokens in the same context under the same model. 128 bits are kept.
"""

import hashlib
import sys
from array import array
from collections.abc import Sequence

BlockHash = bytes
HASH_BYTES = 16
TOKEN_BYTES = 4
_FRESH = hashlib.blake2b(digest_size=HASH_BYTES)
"""Never updated: a copy of it costs less than a constructor with a keyword."""


def cache_seed(fingerprint: str, project: str, adapter: str = "") -> BlockHash:
    """Return the hash that stands before a sequence's first block."""
    return hashlib.blake2b(f"{fingerprint}\0{adapter}\0{project}".encode(), digest_size=HASH_BYTES).digest()


def chain(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Return the hash of a block (whole or partial) that follows the block named ``parent``."""
    return hashlib.blake2b(parent + little_endian(token_ids), digest_size=HASH_BYTES).digest()


def block_hashes(parent: BlockHash, token_ids: Sequence[int], block_size: int) -> list[BlockHash]:
    """Return the hash of each whole block of ``token_ids``, which continue after ``parent``."""
    return token_digests(parent, token_ids[: len(token_ids) - len(token_ids) % block_size], block_size)


def token_digests(parent: BlockHash, token_ids: Sequence[int], block_size: int) -> list[BlockHash]:
    """Return the hash of each block of ``token_ids``, the partial last one included."""
    return byte_digests(parent, little_endian(token_ids), block_size * TOKEN_BYTES)


def byte_digests(parent: BlockHash, data: bytes, stride: int) -> list[BlockHash]:
    """Return the same of token ids that are bytes already, ``stride`` bytes for each block."""
    hashes = []
    for start in range(0, len(data), stride):
        block = _FRESH.copy()
        block.update(parent + data[start : start + stride])
        parent = block.digest()
        hashes.append(parent)
    return hashes


def little_endian(token_ids: Sequence[int]) -> bytes:
    """Return token ids as bytes, ``TOKEN_BYTES`` each."""
    ids = array("I", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()
