"""Matrix products in plain torch, for hosts without a C++ compiler: slow, as every call has the same shape.

A BLAS library sums in another order for another number of rows, and may split a sum between threads. So it only ever
sees ``TILE_ROWS`` rows, on one thread.
"""

import torch

from services.engine.products.product import Product, by_linear

TILE_ROWS = 16


class TiledProducts:
    """Tiles of ``TILE_ROWS`` rows, the last one filled up with zeros."""

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply tile by tile."""
        flat = rows.reshape(-1, rows.shape[-1])
        missing = -flat.shape[0] % TILE_ROWS
        filled = torch.nn.functional.pad(flat, (0, 0, 0, missing)).contiguous()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            tiles = [torch.nn.functional.linear(tile, weight, bias) for tile in torch.split(filled, TILE_ROWS)]
        finally:
            torch.set_num_threads(threads)
        return torch.cat(tiles)[: flat.shape[0]].view(*rows.shape[:-1], weight.shape[0])

    def with_weight(self, weight: torch.Tensor, bias: torch.Tensor | None, *, unrounded: bool = False) -> Product:
        """Return the product with one weight."""
        return by_linear(self, weight, bias, unrounded=unrounded)
