"""Score: what a request would cost on a member; lower is better."""

from services.gateway.routing.in_flight import Estimate

# A full pool weighs as much as this many running sequences: it means preemption, which costs a prefill.
_FULL_POOL_REQUESTS = 32.0
# Costs closer than this are the same; the order among them is left to chance, so that gateways differ.
JITTER = 0.5
# Taken for a worker that has not measured itself yet.
_UNKNOWN_TOKENS_PER_S = 1_000.0


def decode_cost(estimate: Estimate, num_blocks: int) -> float:
    """Return the cost, in running sequences, of a request that needs ``num_blocks`` KV blocks."""
    return estimate.requests + _FULL_POOL_REQUESTS * _used_share(estimate, num_blocks)


def prefill_cost(estimate: Estimate, num_uncached_tokens: int) -> float:
    """Return the predicted seconds until ``num_uncached_tokens`` more prompt tokens are computed."""
    tokens_per_s = estimate.prefill_tokens_per_s or _UNKNOWN_TOKENS_PER_S
    return (estimate.queued_tokens + num_uncached_tokens) / tokens_per_s


def _used_share(estimate: Estimate, num_blocks: int) -> float:
    if estimate.total_blocks == 0:
        return 0.0
    return (estimate.total_blocks - estimate.available_blocks + num_blocks) / estimate.total_blocks
