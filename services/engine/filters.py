"""Temperature, top-k, top-p, min-p: from logits to the distribution that a token is drawn from.

In this order, each on what the one before left. All of them keep every token that ties with the last
one kept, so the result is a function of values alone. For one row they use only elementwise IEEE
operations, comparisons, selection by value, ``softmax`` along the row and sequential sums, so that a row
gets the same bits alone and in any batch.
"""

from collections.abc import Sequence

import torch

from services.kv.sampling import SamplingParams

_SMALLEST_TEMPERATURE = 1e-20
_NUM_CANDIDATES = 256
"""Most nuclei are smaller; rows whose nucleus is larger are sorted whole."""


def probabilities(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Return unnormalised probabilities, float32 ``[num_rows, vocab_size]``; what is filtered out is 0."""
    scaled = _scaled(logits, [row.temperature for row in params])
    scaled = _keep_top_k(scaled, [row.top_k for row in params])
    kept = torch.softmax(scaled, dim=-1)
    nucleus = _nucleus_floor(kept, [row.top_p for row in params])
    return kept.masked_fill(kept < torch.maximum(nucleus, _min_p_floor(kept, params)), 0.0)


def _scaled(logits: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    # The maximum goes first: a tiny temperature then cannot overflow.
    divisor = _column([max(temperature, _SMALLEST_TEMPERATURE) for temperature in temperatures], logits)
    return (logits - logits.amax(dim=-1, keepdim=True)) / divisor


def _keep_top_k(scaled: torch.Tensor, top_ks: Sequence[int]) -> torch.Tensor:
    vocab_size = scaled.shape[-1]
    limited = [row for row, k in enumerate(top_ks) if 0 < k < vocab_size]
    if not limited:
        return scaled
    floor = torch.full((len(top_ks), 1), -torch.inf, device=scaled.device)
    rows, ks = _index(limited, scaled), [top_ks[row] for row in limited]
    largest = scaled[rows].topk(max(ks), dim=-1).values
    floor[rows] = largest.gather(-1, _index([k - 1 for k in ks], scaled)[:, None])
    return scaled.masked_fill(scaled < floor, -torch.inf)


def _nucleus_floor(kept: torch.Tensor, top_ps: Sequence[float]) -> torch.Tensor:
    """Return ``[num_rows, 1]``: the smallest probability in the nucleus (Holtzman et al. 2020, section 3.1)."""
    floor = torch.zeros((len(top_ps), 1), device=kept.device)
    open_rows = [row for row, top_p in enumerate(top_ps) if top_p < 1.0]
    vocab_size = kept.shape[-1]
    for num_candidates in (min(_NUM_CANDIDATES, vocab_size), vocab_size):
        if not open_rows:
            break
        rows = _index(open_rows, kept)
        largest = _largest(kept[rows], num_candidates)
        mass = largest.double().cumsum(dim=-1)
        targets = torch.tensor([top_ps[row] for row in open_rows], dtype=torch.float64, device=kept.device)
        last = torch.searchsorted(mass, targets[:, None]).clamp(max=num_candidates - 1)
        floor[rows] = largest.gather(-1, last)
        is_reached = (mass[:, -1] >= targets).tolist()
        open_rows = [row for row, reached in zip(open_rows, is_reached, strict=True) if not reached]
    return floor


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` largest values of each row, descending."""
    if count == values.shape[-1]:
        return values.sort(dim=-1, descending=True).values
    return values.topk(count, dim=-1).values


def _min_p_floor(kept: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Return ``[num_rows, 1]``: a share of the largest probability (Nguyen et al. 2024, section 3)."""
    return kept.amax(dim=-1, keepdim=True) * _column([row.min_p for row in params], kept)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _index(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
