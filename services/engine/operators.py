"""What a model computes with: attention, matrix products and what stands between them, which belong together."""

from dataclasses import dataclass
from pathlib import Path

from services.engine.attention.backend import AttentionBackend
from services.engine.attention.native import NativeAttention
from services.engine.attention.reference import ReferenceAttention
from services.engine.fused.rows import RowOperators
from services.engine.kernels.library import Kernels
from services.engine.products.native import NativeProducts
from services.engine.products.product import Products
from services.engine.products.tiled import TiledProducts


@dataclass(frozen=True)
class Operators:
    """Implementations that belong together; on CPU no row of any depends on another row."""

    attention: AttentionBackend
    products: Products
    rows: RowOperators | None = None
    """For fused layers; without them, layers run as transformers wrote them."""
    kernels: Kernels | None = None
    """What these are made of, if it is ours."""

    @classmethod
    def native(cls, library: Path, *, num_threads: int = 1) -> "Operators":
        """Return our kernels."""
        kernels = Kernels(library, num_threads=num_threads)
        return cls(NativeAttention(kernels), NativeProducts(kernels), RowOperators(kernels), kernels)

    @classmethod
    def plain(cls) -> "Operators":
        """Return those in plain torch for CPUs."""
        return cls(ReferenceAttention(), TiledProducts())
