import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from services.kv.hashes import block_hashes, cache_seed, chain, token_digests

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=100)
SEED = cache_seed("fingerprint", "project")


@given(TOKENS)
def test_whole_blocks_are_hashed_and_the_partial_one_only_as_a_digest(tokens: list[int]) -> None:
    hashes, digests = block_hashes(SEED, tokens, 16), token_digests(SEED, tokens, 16)
    assert len(hashes) == len(tokens) // 16
    assert len(digests) == -(-len(tokens) // 16)
    assert digests[: len(hashes)] == hashes


@given(TOKENS, TOKENS)
def test_hashes_continue_where_a_parent_ended(head: list[int], tail: list[int]) -> None:
    head = head[: len(head) // 16 * 16]
    first = block_hashes(SEED, head, 16)
    parent = first[-1] if first else SEED
    assert first + block_hashes(parent, tail, 16) == block_hashes(SEED, head + tail, 16)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=32, max_size=64), st.data())
def test_a_changed_token_changes_its_block_and_all_later_ones(tokens: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens]
    changed[index] ^= 1
    for block, (one, other) in enumerate(
        zip(token_digests(SEED, tokens, 16), token_digests(SEED, changed, 16), strict=True)
    ):
        assert (one == other) == (block < index // 16)


def test_projects_and_fingerprints_share_nothing() -> None:
    assert len({cache_seed("f", "p"), cache_seed("f", "q"), cache_seed("g", "p"), cache_seed("f", "p", "lora")}) == 4


def test_the_hash_is_blake2b_over_the_parent_and_little_endian_ids() -> None:
    expected = hashlib.blake2b(SEED + struct.pack("<2I", 1, 70_000), digest_size=16).digest()
    assert chain(SEED, [1, 70_000]) == expected
