from hypothesis import given
from hypothesis import strategies as st

from services.kv.hash_chains import HashChains
from services.kv.hashes import BlockHash, block_hashes, cache_seed

SEEDS = [cache_seed("fingerprint", project) for project in ("one", "other")]
TURNS = st.lists(
    st.tuples(st.sampled_from(SEEDS), st.integers(0, 80), st.lists(st.integers(0, 2), max_size=80)), max_size=12
)


@given(TURNS, st.integers(0, 8000), st.integers(1, 5))
def test_hashes_are_those_of_the_whole_prompt(
    turns: list[tuple[BlockHash, int, list[int]]], max_bytes: int, block_size: int
) -> None:
    chains, before = HashChains(max_bytes), list[int]()
    for seed, num_kept, new in turns:
        before = before[:num_kept] + new
        assert chains.block_hashes(seed, before, block_size) == block_hashes(seed, before, block_size)
        assert chains._num_bytes == sum(chain.num_bytes for chain in chains._chains.values()) <= max_bytes
        assert set(chains._by_hash.values()) <= chains._chains.keys()


def test_a_turn_hashes_no_more_than_is_new() -> None:
    chains, prompt = HashChains(100_000), list(range(1600))
    chains.block_hashes(SEEDS[0], prompt, 16)
    assert chains.num_hashed_blocks == 100
    chains.block_hashes(SEEDS[0], prompt + list(range(96)), 16)
    assert chains.num_hashed_blocks == 100 + 1 + 6
    chains.block_hashes(SEEDS[1], prompt, 16)
    assert chains.num_hashed_blocks == 100 + 1 + 6 + 100
