"""What a model asks of an implementation of matrix products."""

from typing import Protocol

import torch


class Products(Protocol):
    """Multiplies rows with weights. On CPU a row's result depends on that row alone, bitwise."""

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``rows @ weight.T + bias``, ``[..., columns]``.

        ``rows`` is ``[..., inner]``, ``weight`` ``[columns, inner]``, ``bias`` ``[columns]``, all of one dtype, which
        the result has, too; sums are float32.
        """


class TorchProducts:
    """Torch's own, whatever it does: for GPUs."""

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply."""
        return torch.nn.functional.linear(rows, weight, bias)
