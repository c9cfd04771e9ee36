"""Applies grammars to scores: what a request's grammar does not allow cannot be chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.engine.grammar import PARAM, Grammar
from services.engine.request import Request
from services.errors import InvalidRequest, TandemError


@dataclass(frozen=True)
class Constrained:
    """Scores of which only what is allowed is finite, and the rows whose grammar cannot be followed any further."""

    scores: torch.Tensor
    """Float32 ``[num_rows, vocab_size]``; rows that failed are as they were."""
    failures: Mapping[int, TandemError]
    """By row. A failure is its own request's only."""


def constrained(scores: torch.Tensor, requests: Sequence[Request]) -> Constrained:
    """Hold each row of ``scores`` (float32 ``[len(requests), vocab_size]``) to its request's grammar; keeps the input.

    Moves each grammar on by the tokens that its output got since the last time, whoever chose them.
    """
    failures: dict[int, TandemError] = {}
    rows = [(row, grammar) for row, request in enumerate(requests) if (grammar := request.grammar) is not None]
    result = scores.clone() if rows else scores
    for row, grammar in rows:
        try:
            result[row].masked_fill_(_forbidden(grammar, requests[row], result[row]), -torch.inf)
        except TandemError as error:
            failures[row] = error
    return Constrained(result, failures)


def _forbidden(grammar: Grammar, request: Request, scores: torch.Tensor) -> torch.Tensor:
    """Return bool ``[vocab_size]``."""
    fresh = request.token_ids[request.num_prompt_tokens + request.num_followed_tokens :]
    if fresh:
        grammar.consume(fresh)
        request.num_followed_tokens += len(fresh)
    packed = np.frombuffer(grammar.allowed(), dtype=np.uint8)
    allowed = np.unpackbits(packed, count=scores.shape[0], bitorder="little")
    if not allowed.any():
        raise InvalidRequest("No token of this model goes on with the output within its grammar.", param=PARAM)
    return torch.from_numpy(allowed == 0).to(scores.device)
