"""What a model asks of an implementation of matrix products."""

from typing import Protocol

import torch


class Product(Protocol):
    """Multiplies rows with one weight."""

    def __call__(self, rows: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``rows @ weight.T + bias``, ``[..., columns]``, rounded, and then ``+ addend`` of the same shape."""


class Products(Protocol):
    """Multiplies rows with weights. On CPU a row's result depends on that row alone, bitwise."""

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``rows @ weight.T + bias``, ``[..., columns]``.

        ``rows`` is ``[..., inner]``, ``weight`` ``[columns, inner]``, ``bias`` ``[columns]``, all of one dtype, which
        the result has, too; sums are float32.
        """

    def with_weight(self, weight: torch.Tensor, bias: torch.Tensor | None, *, unrounded: bool = False) -> Product:
        """Return the product with one weight, for many calls; it stays where it is in memory.

        ``unrounded`` asks for float32 results, for calls without an addend: the sums themselves, if they can be had.
        """


def by_linear(
    products: Products, weight: torch.Tensor, bias: torch.Tensor | None, *, unrounded: bool = False
) -> Product:
    """Return a product that calls ``products.linear``."""

    def multiply(rows: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        result = products.linear(rows, weight, bias)
        result = result.float() if unrounded else result
        return result if addend is None else addend + result

    return multiply


class TorchProducts:
    """Torch's own, whatever it does: for GPUs."""

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply."""
        return torch.nn.functional.linear(rows, weight, bias)

    def with_weight(self, weight: torch.Tensor, bias: torch.Tensor | None, *, unrounded: bool = False) -> Product:
        """Return the product with one weight."""
        return by_linear(self, weight, bias, unrounded=unrounded)
