"""Block hashing of a long prompt on one core, and what is hashed of a turn that goes on with a prompt."""

from random import Random

from bench.timing import best_cpu_s
from services.kv.hash_chains import HashChains
from services.kv.hashes import BlockHash, block_hashes, cache_seed

BLOCK_SIZE = 16
VOCAB_SIZE = 128_000
_MAX_CHAIN_BYTES = 1 << 20


def prompt(num_tokens: int) -> tuple[int, ...]:
    """Return token ids as a prompt has them."""
    random = Random(1)
    return tuple(random.randrange(VOCAB_SIZE) for _ in range(num_tokens))


def hashes(token_ids: tuple[int, ...]) -> list[BlockHash]:
    """Return the names of the prompt's blocks."""
    return block_hashes(cache_seed("layout", "bench"), token_ids, BLOCK_SIZE)


def measure(num_tokens: int = 100_000, rounds: int = 10) -> float:
    """Return millions of tokens per second."""
    token_ids = prompt(num_tokens)
    return num_tokens / best_cpu_s(lambda: hashes(token_ids), rounds) / 1e6


def count_of_turn(num_before: int = 2000, num_new: int = 100) -> int:
    """Return the tokens that a gateway hashes of a prompt of which it has seen the first ``num_before`` before."""
    chains, seed, token_ids = HashChains(_MAX_CHAIN_BYTES), cache_seed("layout", "bench"), prompt(num_before + num_new)
    chains.block_hashes(seed, token_ids[:num_before], BLOCK_SIZE)
    num_before_turn = chains.num_hashed_blocks
    chains.block_hashes(seed, token_ids, BLOCK_SIZE)
    return BLOCK_SIZE * (chains.num_hashed_blocks - num_before_turn)
