"""What a request adds to or takes from the logits before a token is chosen.

In this order: logit bias, repetition penalty, frequency and presence penalty, end tokens forbidden.
Each touches few of a row's logits, by index.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from services.engine.request import Request
from services.kv.sampling import SamplingParams

_Ids = npt.NDArray[np.int64]


def adjusted(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """Return float32 ``[num_rows, vocab_size]`` logits with every request's adjustments; the input is kept."""
    rows = [row for row, request in enumerate(requests) if _is_adjusted(request)]
    if not rows:
        return logits
    result = logits.clone()
    for index in rows:
        row, request = result[index], requests[index]
        _add_bias(row, request.spec.params)
        _penalise_repetition(row, request)
        _penalise_counts(row, request)
        _forbid_end(row, request)
    return result


def _is_adjusted(request: Request) -> bool:
    params = request.spec.params
    return (
        bool(params.logit_bias)
        or _has_repetition_penalty(params)
        or _has_count_penalty(params)
        or _forbids_end(request)
    )


def _has_repetition_penalty(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0


def _has_count_penalty(params: SamplingParams) -> bool:
    return params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _forbids_end(request: Request) -> bool:
    params = request.spec.params
    return request.num_output_tokens < params.min_tokens and bool(params.stop_token_ids)


def _add_bias(row: torch.Tensor, params: SamplingParams) -> None:
    if not params.logit_bias:
        return
    ids = _known(params.logit_bias, row)
    bias = [params.logit_bias[int(token_id)] for token_id in ids]
    row[_on(row, ids)] += torch.tensor(bias, dtype=row.dtype, device=row.device)


def _penalise_repetition(row: torch.Tensor, request: Request) -> None:
    """Keskar et al., CTRL (2019), section 4.1; negative logits are multiplied, so that they fall too."""
    if not _has_repetition_penalty(request.spec.params):
        return
    index = _on(row, np.unique(_known(request.token_ids, row)))
    penalty = torch.tensor(request.spec.params.repetition_penalty, dtype=row.dtype, device=row.device)
    seen = row[index]
    row[index] = torch.where(seen > 0, seen / penalty, seen * penalty)


def _penalise_counts(row: torch.Tensor, request: Request) -> None:
    params = request.spec.params
    if not _has_count_penalty(params):
        return
    ids, counts = np.unique(_known(request.output_token_ids, row), return_counts=True)
    penalty = params.frequency_penalty * counts + params.presence_penalty
    row[_on(row, ids)] -= torch.from_numpy(penalty).to(dtype=row.dtype, device=row.device)


def _forbid_end(row: torch.Tensor, request: Request) -> None:
    if _forbids_end(request):
        row[_on(row, _known(request.spec.params.stop_token_ids, row))] = -torch.inf


def _known(token_ids: Iterable[int], row: torch.Tensor) -> _Ids:
    """Return the ids that the row has a logit for."""
    ids = np.fromiter(token_ids, dtype=np.int64)
    return ids[(ids >= 0) & (ids < row.shape[0])]


def _on(row: torch.Tensor, ids: _Ids) -> torch.Tensor:
    return torch.from_numpy(ids).to(row.device)
