"""What a model computes with: attention and matrix products that belong together."""

from dataclasses import dataclass
from pathlib import Path

from services.engine.attention.backend import AttentionBackend
from services.engine.attention.native import NativeAttention
from services.engine.attention.reference import ReferenceAttention
from services.engine.kernels.library import Kernels
from services.engine.products.native import NativeProducts
from services.engine.products.product import Products
from services.engine.products.tiled import TiledProducts


@dataclass(frozen=True)
class Operators:
    """Implementations that belong together; on CPU no row of either depends on another row."""

    attention: AttentionBackend
    products: Products

    @classmethod
    def native(cls, library: Path, *, num_threads: int = 1) -> "Operators":
        """Return our kernels."""
        kernels = Kernels(library, num_threads=num_threads)
        return cls(NativeAttention(kernels), NativeProducts(kernels))

    @classmethod
    def plain(cls) -> "Operators":
        """Return those in plain torch for CPUs."""
        return cls(ReferenceAttention(), TiledProducts())
