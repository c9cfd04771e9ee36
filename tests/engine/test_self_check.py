from pathlib import Path

import pytest
import torch

from services.engine.attention.backend import AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.attention.native import NativeAttention
from services.engine.attention.reference import ReferenceAttention
from services.engine.kernels import build
from services.engine.operators import Operators
from services.engine.products.tiled import TiledProducts
from services.engine.selection import default_operators
from services.engine.self_check import agrees, attention_difference

DTYPES = [torch.float32, torch.bfloat16]


class WrongFromTheSecondBlockOn(ReferenceAttention):
    """What a miscompiled kernel may look like: right for short contexts."""

    def attend(
        self,
        batch: PackedBatch,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        output = super().attend(batch, query, keys, values, options)
        output[batch.positions >= 128] *= 1.5
        return output


class WrongInTheLastColumn(TiledProducts):
    """What a kernel may look like that forgets the columns that fill no vector."""

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output = super().linear(rows, weight, bias)
        output[..., -1] += 0.5
        return output


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_compiled_kernels_agree_with_plain_torch(dtype: torch.dtype, kernels: Path) -> None:
    operators = default_operators(torch.device("cpu"), dtype, cache_folder=kernels, num_threads=1)
    assert agrees(operators, dtype)
    assert isinstance(operators.attention, NativeAttention) == (build.find_compiler() is not None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_that_is_wrong_here_and_there_is_noticed(dtype: torch.dtype) -> None:
    assert attention_difference(ReferenceAttention(), dtype) == 0.0
    assert agrees(Operators.plain(), dtype)
    assert not agrees(Operators(WrongFromTheSecondBlockOn(), TiledProducts()), dtype)
    assert not agrees(Operators(ReferenceAttention(), WrongInTheLastColumn()), dtype)
