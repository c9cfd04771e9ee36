"""Chooses tokens: a pure function of a row of logits, the request's parameters and its token history.

Rows do not influence each other: a row's token and log probabilities have the same bits alone, in any
batch, at any place in it, and after a resume with the same history.
"""

from collections.abc import Sequence

import torch

from services.engine.adjustments import adjusted
from services.engine.constraints import constrained
from services.engine.filters import probabilities
from services.engine.output import SampledToken, TokenLogprob
from services.engine.random_numbers import uniforms
from services.engine.request import Request
from services.errors import InternalError, TandemError

_ROWS_AT_ONCE = 16
"""Rows drawn together; bounds the memory of the float64 sums, changes no result."""


class BatchSampler:
    """Samples all rows of a step together. Needs no state."""

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> Sequence[SampledToken | TandemError]:
        """Return one token per row of ``logits`` (float32 ``[len(requests), vocab_size]``).

        A request whose grammar cannot be followed gets an error in its place, and the others their tokens.

        Raises:
            InternalError: a row holds NaN or infinity.
        """
        if not requests:
            return ()
        allowed = constrained(adjusted(logits, requests), requests)
        tokens = self._chosen(logits, allowed.scores, requests)
        return [allowed.failures.get(row, token) for row, token in enumerate(tokens)]

    def _chosen(
        self, logits: torch.Tensor, scores: torch.Tensor, requests: Sequence[Request]
    ) -> Sequence[SampledToken]:
        token_ids = _most_likely(scores, requests)
        drawn = [row for row, request in enumerate(requests) if not request.spec.params.is_greedy]
        for rows in (drawn[i : i + _ROWS_AT_ONCE] for i in range(0, len(drawn), _ROWS_AT_ONCE)):
            for row, token_id in zip(rows, _draw(scores[rows], [requests[row] for row in rows]), strict=True):
                token_ids[row] = token_id
        return _with_logprobs(logits, requests, token_ids)


def _most_likely(scores: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Return the lowest id among the largest scores of each row."""
    largest = scores.max(dim=-1)
    is_finite = largest.values.isfinite().tolist()
    bad = [request.request_id for request, finite in zip(requests, is_finite, strict=True) if not finite]
    if bad:
        raise InternalError(f"No token can be chosen for {', '.join(bad)}: the logits are not finite.")
    token_ids: list[int] = largest.indices.tolist()
    return token_ids


def _draw(scores: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Invert the cumulative distribution, in order of token id, at one uniform number per row."""
    params = [request.spec.params for request in requests]
    mass = probabilities(scores, params).double().cumsum(dim=-1)
    numbers = uniforms(
        [row.seed for row in params],
        [row.choice_index for row in params],
        [request.num_output_tokens for request in requests],
    )
    targets = torch.from_numpy(numbers).to(mass.device)[:, None] * mass[:, -1:]
    token_ids: list[int] = torch.searchsorted(mass, targets, right=True)[:, 0].tolist()
    return token_ids


def _with_logprobs(
    logits: torch.Tensor, requests: Sequence[Request], token_ids: Sequence[int]
) -> Sequence[SampledToken]:
    asked = [row for row, request in enumerate(requests) if request.spec.params.logprobs is not None]
    tokens = [SampledToken(token_id) for token_id in token_ids]
    if asked:
        for row, values in zip(asked, torch.log_softmax(logits[asked], dim=-1), strict=True):
            tokens[row] = _described(values, token_ids[row], requests[row].spec.params.logprobs or 0)
    return tokens


def _described(logprobs: torch.Tensor, token_id: int, num_top: int) -> SampledToken:
    """Return the token with its log probability and the ``num_top`` largest; ties by lowest id."""
    if num_top == 0:
        return SampledToken(token_id, float(logprobs[token_id]))
    floor = logprobs.topk(min(num_top, logprobs.shape[0])).values[-1]
    candidates = torch.nonzero(logprobs >= floor)[:, 0]
    pairs = zip(candidates.tolist(), logprobs[candidates].tolist(), strict=True)
    best = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:num_top]
    top = tuple(TokenLogprob(candidate, value) for candidate, value in best)
    return SampledToken(token_id, float(logprobs[token_id]), top)
