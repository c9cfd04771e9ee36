"""Block hashing of a long prompt on one core."""

from random import Random

from bench.timing import best_cpu_s
from services.kv.hashes import BlockHash, block_hashes, cache_seed

BLOCK_SIZE = 16
VOCAB_SIZE = 128_000


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
