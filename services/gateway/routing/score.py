"""Score: what a request would cost on a member; lower is better."""

from services.gateway.routing.in_flight import Estimate

# A full pool weighs as much as this many running sequences: it means preemption, which costs a prefill.
_FULL_POOL_REQUESTS = 32.0
# Costs closer than this are the same; the order among them is left to chance, so that gateways differ.
JITTER = 0.5
# Having all KV of a prompt weighs as much as this many running sequences: it can be fetched, but not for nothing.
_WHOLE_PREFIX_REQUESTS = 2.0
# What fetching the KV of a token costs, in tokens computed.
_FETCHED_TOKEN = 0.05
# Taken for a worker that has not measured itself yet.
_UNKNOWN_TOKENS_PER_S = 1_000.0


def decode_cost(estimate: Estimate, num_blocks: int, cached_share: float = 0.0) -> float:
    """Return the cost, in running sequences, of a request that needs ``num_blocks`` KV blocks.

    ``cached_share`` is the part of its prompt that the member has in its prefix cache.
    """
    used_share = estimate.used_share + num_blocks * estimate.block_share
    return estimate.requests + _FULL_POOL_REQUESTS * used_share - _WHOLE_PREFIX_REQUESTS * cached_share


def prefill_cost(estimate: Estimate, num_computed_tokens: int, num_fetched_tokens: int = 0) -> float:
    """Return the predicted seconds until so many more prompt tokens are computed, and others fetched before."""
    tokens_per_s = estimate.prefill_tokens_per_s or _UNKNOWN_TOKENS_PER_S
    return (estimate.queued_tokens + num_computed_tokens + _FETCHED_TOKEN * num_fetched_tokens) / tokens_per_s
