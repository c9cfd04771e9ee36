from pathlib import Path

import pytest
import torch

from services.engine.attention import native_build
from services.engine.attention.backend import AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.attention.native import NativeAttention
from services.engine.attention.reference import ReferenceAttention
from services.engine.attention.select import default_backend
from services.engine.attention.self_check import agrees, largest_difference

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


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_compiled_kernels_agree_with_plain_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    backend = default_backend(torch.device("cpu"), dtype, cache_folder=tmp_path, num_threads=1)
    assert agrees(backend, dtype)
    assert isinstance(backend, NativeAttention) == (native_build.find_compiler() is not None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_that_is_wrong_in_long_contexts_only_is_noticed(dtype: torch.dtype) -> None:
    assert largest_difference(ReferenceAttention(), dtype) == 0.0
    assert not agrees(WrongFromTheSecondBlockOn(), dtype)
