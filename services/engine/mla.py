"""Latent attention (MLA) without expanding the cache: the absorbed form of DeepSeek-V2, section 2.1.

The cache holds one plane ``latent`` per layer, with one head: ``[compressed KV | rotated key]``. The up-projection
of keys moves into the query, that of values behind the attention, so that every query head attends to the
latents themselves.
"""

from dataclasses import dataclass

import torch

from services.engine.products.product import Products

_REQUIRED = ("expand_kv", "kv_b_proj", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank")


def keep_latents(model: torch.nn.Module) -> None:
    """Make every latent attention of ``model`` hand its latents to the attention function, unexpanded."""
    for module in model.modules():
        if is_latent(module):
            module.expand_kv = _unexpanded  # type: ignore[assignment]


def is_latent(module: torch.nn.Module) -> bool:
    """Whether ``module`` is a latent attention that the absorbed form fits."""
    return all(hasattr(module, name) for name in _REQUIRED) and getattr(module.kv_b_proj, "bias", None) is None


def _unexpanded(kv_nope: torch.Tensor, k_rot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return kv_nope, k_rot


@dataclass(frozen=True, eq=False)
class LatentProjection:
    """The up-projections of one layer out of ``kv_b_proj``, each a linear's weight per head.

    ``keys`` is ``[num_heads, rank, nope]``, ``values`` is ``[num_heads, value_width, rank]``.
    """

    keys: torch.Tensor
    values: torch.Tensor
    products: Products

    @classmethod
    def of(cls, module: torch.nn.Module, products: Products) -> "LatentProjection":
        """Read the projections of a latent attention; the keys' part is a copy."""
        nope, width, rank = (int(getattr(module, name)) for name in ("qk_nope_head_dim", "v_head_dim", "kv_lora_rank"))
        weight = module.kv_b_proj.weight.detach().view(-1, nope + width, rank)  # type: ignore[union-attr, operator]
        return cls(weight[:, :nope].transpose(1, 2).contiguous(), weight[:, nope:], products)

    @property
    def rank(self) -> int:
        """Width of the compressed KV: the part of a latent that is the value."""
        return int(self.values.shape[2])

    def absorb(self, query: torch.Tensor) -> torch.Tensor:
        """Return queries ``[num_rows, num_heads, rank + rope]`` that meet latents, from ``[.., nope + rope]``."""
        nope = self.keys.shape[2]
        return torch.cat((self._by_head(query[..., :nope], self.keys), query[..., nope:]), dim=-1)

    def expand(self, attended: torch.Tensor) -> torch.Tensor:
        """Return ``[num_rows, num_heads, value_width]`` from attended latents ``[.., rank]``."""
        return self._by_head(attended, self.values)

    def _by_head(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return ``rows[:, head] @ weights[head].T`` for each head, ``[num_rows, num_heads, columns]``."""
        if rows.device.type != "cpu":
            return torch.bmm(rows.transpose(0, 1), weights.transpose(1, 2)).transpose(0, 1)
        parts = [self.products.linear(part, weight) for part, weight in zip(rows.unbind(1), weights, strict=True)]
        return torch.stack(parts, dim=1)
