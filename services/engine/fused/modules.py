"""The modules that take the places of a decoder layer and its parts; they hold the parts that they replace.

norm -> q, k, v -> rotate -> attend -> project, + rows -> norm -> gate, up -> silu(gate) x up -> project, + rows
"""

from typing import Any

import torch
from torch import nn

from services.engine.attention.interface import LayerArguments, current_runner
from services.engine.fused.rows import RowOperators
from services.engine.products.modules import Linear
from services.errors import InternalError


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, norm: Any, operators: RowOperators) -> None:
        super().__init__()
        self.weight = norm.weight
        self._epsilon = float(norm.variance_epsilon)
        self._operators = operators

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``[..., width]``."""
        return self._operators.norm(rows.contiguous(), self.weight, self._epsilon)


class GatedMLP(nn.Module):
    """``down(silu(gate(rows)) * up(rows))``."""

    def __init__(self, mlp: Any, operators: RowOperators) -> None:
        super().__init__()
        self.gate_proj: Linear = mlp.gate_proj
        self.up_proj: Linear = mlp.up_proj
        self.down_proj: Linear = mlp.down_proj
        self._operators = operators

    def forward(self, rows: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``[..., width]``, plus ``addend``."""
        gated = self._operators.gate(self.gate_proj.product(rows), self.up_proj.product(rows))
        return self.down_proj.product(gated, addend)


class Attention(nn.Module):
    """Attention of one layer, from rows to rows; whoever answers the forward pass keeps the cache."""

    def __init__(self, attention: Any, window: int | None, operators: RowOperators) -> None:
        super().__init__()
        self.q_proj: Linear = attention.q_proj
        self.k_proj: Linear = attention.k_proj
        self.v_proj: Linear = attention.v_proj
        self.o_proj: Linear = attention.o_proj
        self.q_norm = getattr(attention, "q_norm", None)
        self.k_norm = getattr(attention, "k_norm", None)
        self._width = int(attention.head_dim)
        self._arguments = LayerArguments(attention.scaling, window, None, None)
        self._known_as = (attention,)  # in a tuple, so that its parts are not registered twice
        self._operators = operators

    def forward(
        self, rows: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], addend: torch.Tensor | None
    ) -> torch.Tensor:
        """Return ``[1, num_rows, width]`` plus ``addend``; ``angles`` are cosines and sines ``[1, num_rows, width]``.

        Raises:
            InternalError: the angles are not those of whole heads.
        """
        query, key, value = (
            projection.product(rows).view(rows.shape[1], -1, self._width)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        self._rotate(query, key, angles)
        attended = current_runner().attend(self._known_as[0], query, key, value, self._arguments)
        return self.o_proj.product(attended.reshape(1, rows.shape[1], -1), addend)

    def _rotate(self, query: torch.Tensor, key: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> None:
        cos, sin = angles
        if cos.shape != (1, query.shape[0], self._width) or cos.dtype is not query.dtype:
            raise InternalError(f"angles {tuple(cos.shape)} in {cos.dtype} for heads {tuple(query.shape)}")
        cos, sin = cos.contiguous(), sin.contiguous()
        self._operators.rotate(query, cos, sin)
        self._operators.rotate(key, cos, sin)


class DecoderLayer(nn.Module):
    """One layer; parts that are not ours are called as transformers calls them."""

    def __init__(self, layer: Any, attention: nn.Module) -> None:
        super().__init__()
        self.input_layernorm: nn.Module = layer.input_layernorm
        self.self_attn = attention
        self.post_attention_layernorm: nn.Module = layer.post_attention_layernorm
        self.mlp: nn.Module = layer.mlp
        if hasattr(layer, "attention_type"):  # which mask some models would build for it
            self.attention_type = layer.attention_type

    def forward(
        self, hidden_states: torch.Tensor, *, position_embeddings: tuple[torch.Tensor, torch.Tensor], **options: Any
    ) -> torch.Tensor:
        """Return ``[1, num_rows, width]`` from as much."""
        normed = self.input_layernorm(hidden_states)
        if isinstance(self.self_attn, Attention):
            rows = self.self_attn(normed, position_embeddings, hidden_states)
        else:
            attended, _ = self.self_attn(hidden_states=normed, position_embeddings=position_embeddings, **options)
            rows = hidden_states + attended
        normed = self.post_attention_layernorm(rows)
        result: torch.Tensor = self.mlp(normed, rows) if isinstance(self.mlp, GatedMLP) else rows + self.mlp(normed)
        return result
