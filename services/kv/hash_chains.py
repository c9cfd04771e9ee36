"""Block hashes of prompts that grow: a turn of a conversation hashes what is new, and finds the rest by its bytes."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from services.kv.hashes import HASH_BYTES, TOKEN_BYTES, BlockHash, byte_digests, little_endian

_BYTES_PER_HASH = 33 + HASH_BYTES + 8
"""A bytes object and its place in a list."""
_BYTES_PER_CHAIN = 400
"""Its objects, and what finds it."""


@dataclass(frozen=True)
class _Chain:
    data: bytes
    """Token ids of whole blocks."""
    hashes: list[BlockHash]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""
        return len(self.data) + _BYTES_PER_HASH * len(self.hashes) + _BYTES_PER_CHAIN


class HashChains:
    """The chains of the prompts seen last, in about ``max_bytes`` of memory; plain Python, for one thread.

    A chain is found by its hashes after 1, 2, 4, 8, ... blocks. So prompts that share a long beginning are told apart,
    and seeds, which the first hash depends on.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_hashed_blocks = 0
        """Blocks whose hash was computed, and not found, since the start."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._chains: OrderedDict[BlockHash, _Chain] = OrderedDict()  # by the last hash, least recently used first
        self._by_hash: dict[BlockHash, BlockHash] = {}

    def block_hashes(self, seed: BlockHash, token_ids: Sequence[int], block_size: int) -> list[BlockHash]:
        """Return ``services.kv.hashes.block_hashes`` of the same."""
        num_blocks, stride = len(token_ids) // block_size, block_size * TOKEN_BYTES
        data, hashes = little_endian(token_ids[: num_blocks * block_size]), list[BlockHash]()
        while (num_known := len(hashes)) < num_blocks:
            end = min(1 << num_known.bit_length(), num_blocks)
            parent = hashes[-1] if hashes else seed
            hashes += byte_digests(parent, data[num_known * stride : end * stride], stride)
            self.num_hashed_blocks += end - num_known
            chain = self._chains.get(self._by_hash.get(hashes[-1], b""))
            if chain is not None:
                num_same = _num_same(chain.data, data, end * stride) // stride
                hashes += chain.hashes[end:num_same]
                if num_same == len(chain.hashes):
                    self._forget(chain)  # this prompt continues it
        if hashes:
            self._remember(_Chain(data, [*hashes]))
        return hashes

    def _remember(self, chain: _Chain) -> None:
        name = chain.hashes[-1]
        if name in self._chains:
            self._forget(self._chains[name])
        self._chains[name] = chain
        self._num_bytes += chain.num_bytes
        self._by_hash.update((landmark, name) for landmark in _landmarks(chain))
        while self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._chains.values())))

    def _forget(self, chain: _Chain) -> None:
        name = chain.hashes[-1]
        del self._chains[name]
        self._num_bytes -= chain.num_bytes
        for landmark in _landmarks(chain):
            if self._by_hash.get(landmark) == name:
                del self._by_hash[landmark]


def _landmarks(chain: _Chain) -> list[BlockHash]:
    hashes = chain.hashes
    return [hashes[(1 << power) - 1] for power in range(len(hashes).bit_length())]


def _num_same(one: bytes, other: bytes, low: int) -> int:
    """Return how many bytes both begin with alike; the first ``low`` are known to be."""
    high = min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
