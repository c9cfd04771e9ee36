"""Matrix products with packed weights (``packed.cpp``): bitwise those with the expanded ones, from fewer bytes."""

from collections.abc import Mapping

import torch

from services.engine.kernels.library import Kernels, PackedLinearCall
from services.engine.products.native import NativeProduct, NativeProducts
from services.engine.products.product import Product
from services.engine.weights.packed import PackedWeight
from services.errors import InternalError


class PackedProducts(NativeProducts):
    """Our own, with the packed form of a weight in its place where there is one."""

    def __init__(self, kernels: Kernels, packed: Mapping[int, PackedWeight]) -> None:
        """``packed`` has the packed forms by the addresses of the expanded weights."""
        super().__init__(kernels)
        self._packed = packed

    def with_weight(self, weight: torch.Tensor, bias: torch.Tensor | None, *, unrounded: bool = False) -> Product:
        """Return the product with one weight, given in its expanded form.

        Raises:
            InternalError: weight and bias differ in dtype or do not fit.
        """
        packed = self._packed.get(weight.data_ptr())
        if packed is None or packed.shape != weight.shape or not weight.is_contiguous():
            return super().with_weight(weight, bias, unrounded=unrounded)
        return PackedProduct(self._kernels, weight, packed, bias, unrounded=unrounded)


class PackedProduct(NativeProduct):
    """The product with one packed weight; the expanded one is never read. For one thread at a time."""

    def __init__(
        self,
        kernels: Kernels,
        weight: torch.Tensor,
        packed: PackedWeight,
        bias: torch.Tensor | None,
        *,
        unrounded: bool = False,
    ) -> None:
        if weight.dtype is not torch.bfloat16 or packed.shape != weight.shape or kernels.packed_linear is None:
            raise InternalError(f"a product of packed weights {tuple(packed.shape)} for {tuple(weight.shape)}")
        super().__init__(kernels, weight, bias, unrounded=unrounded)
        self.packed = packed
        call = PackedLinearCall(
            product=self._call,
            scales=packed.scales.data_ptr(),
            quants=packed.quants.data_ptr(),
            quant_bits=packed.bits,
        )
        packed_linear = kernels.packed_linear
        self._call = call.product  # the same memory
        self._multiply = lambda _: packed_linear(call)
