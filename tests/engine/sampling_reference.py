"""A slow, obvious sampler for one row, written from the documentation of each parameter."""

import numpy as np
import numpy.typing as npt

from services.engine.random_numbers import uniforms
from services.engine.request import Request

Row = npt.NDArray[np.float32]
ZERO = np.float32(0.0)


def softmax(row: Row) -> list[float]:
    import torch

    values: list[float] = torch.softmax(torch.from_numpy(row.copy()), dim=-1).tolist()
    return values


def adjusted(logits: Row, request: Request) -> Row:
    params, scores = request.spec.params, logits.copy()
    for token_id, bias in params.logit_bias.items():
        scores[token_id] += np.float32(bias)
    repetition = np.float32(params.repetition_penalty)
    for token_id in set(request.token_ids):
        scores[token_id] = scores[token_id] / repetition if scores[token_id] > 0 else scores[token_id] * repetition
    output = request.output_token_ids
    for token_id in set(output):
        penalty = params.frequency_penalty * output.count(token_id) + params.presence_penalty
        scores[token_id] -= np.float32(penalty)
    if len(output) < params.min_tokens:
        for token_id in params.stop_token_ids:
            scores[token_id] = -np.inf
    return scores


def kept_tokens(scores: Row, request: Request) -> dict[int, float]:
    """Map each token that survives all filters to its unnormalised probability."""
    params = request.spec.params
    scaled = (scores - scores.max()) / np.float32(params.temperature)
    if 0 < params.top_k < len(scaled):
        scaled[scaled < sorted(scaled, reverse=True)[params.top_k - 1]] = -np.inf
    probability = softmax(scaled)
    nucleus, mass = 0.0, 0.0
    if params.top_p < 1.0:
        for value in sorted(probability, reverse=True):
            nucleus, mass = value, mass + value
            if mass >= params.top_p:
                break
    floor = max(nucleus, float(np.float32(max(probability)) * np.float32(params.min_p)))
    return {token_id: value for token_id, value in enumerate(probability) if value >= floor and value > 0.0}


def next_token(logits: Row, request: Request) -> int:
    scores, params = adjusted(logits, request), request.spec.params
    if params.temperature == 0.0:
        return int(np.argmax(scores))
    kept = kept_tokens(scores, request)
    target = uniforms([params.seed], [params.choice_index], [request.num_output_tokens])[0] * sum(kept.values())
    mass = 0.0
    for token_id, value in kept.items():
        mass += value
        if mass > target:
            return token_id
    raise AssertionError("the target is below the whole mass")
