"""Matrix products by our own kernel (``linear.cpp``)."""

import torch

from services.engine.kernels.library import DTYPES, Kernels, LinearCall
from services.engine.products.product import Product
from services.errors import InternalError


class NativeProducts:
    """One chain of float32 sums per output, in the order of the inner dimension, for any number of rows and threads."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply.

        Raises:
            InternalError: rows, weight and bias differ in dtype or do not fit.
        """
        return NativeProduct(self._kernels, weight, bias)(rows)

    def with_weight(self, weight: torch.Tensor, bias: torch.Tensor | None, *, unrounded: bool = False) -> Product:
        """Return the product with one weight.

        Raises:
            InternalError: weight and bias differ in dtype or do not fit.
        """
        return NativeProduct(self._kernels, weight, bias, unrounded=unrounded)


class NativeProduct:
    """The product with one weight; an odd inner dimension in bfloat16 is filled up. For one thread at a time."""

    def __init__(
        self, kernels: Kernels, weight: torch.Tensor, bias: torch.Tensor | None, *, unrounded: bool = False
    ) -> None:
        if (bias is not None and bias.dtype != weight.dtype) or weight.dtype not in DTYPES:
            raise InternalError(
                f"a product of weights in {weight.dtype}, bias in {None if bias is None else bias.dtype}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise InternalError(f"a product of weights {tuple(weight.shape)} with a bias {tuple(bias.shape)}")
        self._multiply = kernels.linear
        self._dtype, (self._columns, self._inner) = weight.dtype, weight.shape
        self._output_dtype = torch.float32 if unrounded else weight.dtype
        self._missing = weight.shape[1] % 2 if weight.dtype is torch.bfloat16 else 0
        weight = torch.nn.functional.pad(weight, (0, self._missing)) if self._missing else weight
        self._weight = weight if weight.stride(1) == 1 else weight.contiguous()
        self._bias = None if bias is None else bias.contiguous()
        self._call = LinearCall(
            weight=self._weight.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            parallel=kernels.parallel,
            weight_stride=self._weight.stride(0),
            columns=self._columns,
            inner=self._weight.shape[1],
            dtype=DTYPES[weight.dtype],
            output_dtype=DTYPES[self._output_dtype],
            num_threads=kernels.num_threads,
        )

    def __call__(self, rows: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply and add.

        Raises:
            InternalError: rows or addend differ from the weight in dtype or do not fit.
        """
        shape = rows.shape
        if rows.dtype is not self._dtype or shape[-1] != self._inner:
            raise InternalError(
                f"a product of rows {tuple(shape)} in {rows.dtype} with weights of {self._inner} in {self._dtype}"
            )
        rows = (torch.nn.functional.pad(rows, (0, self._missing)) if self._missing else rows).contiguous()
        output = rows.new_empty(*shape[:-1], self._columns, dtype=self._output_dtype)
        call = self._call
        call.rows, call.output = rows.data_ptr(), output.data_ptr()
        call.num_rows = output.numel() // self._columns
        call.addend = None
        if addend is not None:
            if addend.dtype is not output.dtype or addend.shape != output.shape:
                raise InternalError(
                    f"a product {tuple(output.shape)} in {self._dtype}, to be added to {tuple(addend.shape)}"
                )
            addend = addend.contiguous()
            call.addend = addend.data_ptr()
        self._multiply(call)
        return output
