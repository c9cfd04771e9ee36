"""Mixture-of-experts layers whose result for a row does not depend on which rows share its experts."""

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from services.engine.attention.batch import padded
from services.engine.exactness import rows_for_width

EXPERTS_NAME = "tandem_padded"


def register() -> None:
    """Make the implementation known to transformers under ``EXPERTS_NAME``; idempotent."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, run_experts)


def run_experts(
    experts: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Run each expert that is hit on its rows, padded as its activation needs it.

    ``hidden_states`` is ``[num_rows, hidden]``, ``top_k_index`` and ``top_k_weights`` are ``[num_rows, k]``; an index
    of ``num_experts`` or more means an expert of another rank. Returns ``[num_rows, hidden]``.
    """
    num_rows, top_k = top_k_index.shape
    expert_ids, order = torch.sort(top_k_index.reshape(-1), stable=True)
    counts = torch.bincount(expert_ids, minlength=int(experts.num_experts)).tolist()  # type: ignore[arg-type]
    outputs = hidden_states.new_zeros(num_rows * top_k, hidden_states.shape[-1])
    first = 0
    for expert, count in enumerate(counts[: int(experts.num_experts)]):  # type: ignore[arg-type]
        if count:
            chosen = order[first : first + count]
            outputs[chosen] = _run_expert(experts, expert, hidden_states[chosen // top_k])
            first += count
    weighted = outputs * top_k_weights.reshape(-1, 1)
    return weighted.view(num_rows, top_k, -1).sum(dim=1).to(hidden_states.dtype)


def _run_expert(experts: torch.nn.Module, expert: int, rows: torch.Tensor) -> torch.Tensor:
    down: torch.Tensor = experts.down_proj  # type: ignore[assignment]
    width = down.shape[1 if experts.is_transposed else 2]
    missing = padded(rows.shape[0], rows_for_width(width)) - rows.shape[0]
    if missing:
        rows = torch.cat((rows, rows.new_zeros(missing, rows.shape[1])))
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    hidden = _project(experts, up, expert, rows)
    hidden = experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden)  # type: ignore[operator]
    hidden = _project(experts, "down_proj", expert, hidden)
    if experts.has_post_expert_norm:
        hidden = experts.post_expert_norm(hidden)  # type: ignore[operator]
    return hidden[: hidden.shape[0] - missing]


def _project(experts: torch.nn.Module, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return torch.nn.functional.linear(rows, weight.t() if experts.is_transposed else weight, bias)
