import mmap

import pytest
import torch

from services.engine.kv_cache import KVCache
from services.errors import ConfigurationError, InternalError
from services.kv.layout import KVLayout, Plane

CPU = torch.device("cpu")
PLANES = (
    Plane(0, "key", 2, 8, "bfloat16"),
    Plane(0, "value", 2, 6, "bfloat16"),
    Plane(1, "latent", 1, 20, "bfloat16"),
    Plane(2, "key", 1, 8, "bfloat16"),
    Plane(2, "value", 1, 8, "bfloat16"),
)


def cache_of(planes: tuple[Plane, ...] = PLANES, num_blocks: int = 5) -> KVCache:
    return KVCache(KVLayout("model", "numerics", 16, planes), num_blocks, CPU)


def test_planes_lie_in_a_block_where_the_layout_says() -> None:
    cache = cache_of()
    for index, (plane, tensor) in enumerate(zip(PLANES, cache.planes, strict=True)):
        assert tensor.shape == (5, plane.heads, 16, plane.width)
        offset = tensor[3].data_ptr() - cache.buffer.address
        assert offset == 3 * cache.layout.block_bytes + cache.layout.plane_offsets[index]
        assert tensor[3].is_contiguous()


def test_planes_do_not_overlap_and_fill_the_block() -> None:
    cache = cache_of()
    for index, tensor in enumerate(cache.planes):
        tensor.fill_(index + 1)
    assert [float(tensor.mean()) for tensor in cache.planes] == [1, 2, 3, 4, 5]
    assert 0 not in torch.frombuffer(bytearray(cache.block_view(4)), dtype=torch.bfloat16)


def test_memory_starts_on_a_page_and_is_zero() -> None:
    cache = cache_of()
    assert cache.buffer.address % mmap.PAGESIZE == 0
    assert cache.buffer.num_bytes == 5 * cache.layout.block_bytes == len(cache.view)
    assert not any(cache.view)


def test_a_block_view_is_the_memory_itself() -> None:
    cache = cache_of()
    view = cache.block_view(2)
    view[:] = bytes(range(256)) * (len(view) // 256) + bytes(len(view) % 256)
    assert not any(cache.block_view(1))
    assert not any(cache.block_view(3))
    assert cache.planes[0][2].view(torch.uint8).flatten()[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("num_tokens", [0, 5, 15, 16])
def test_zero_tail_clears_the_later_slots_of_every_plane_of_one_block(num_tokens: int) -> None:
    cache = cache_of()
    for tensor in cache.planes:
        tensor.fill_(torch.nan)
    cache.zero_tail(3, num_tokens)
    for tensor in cache.planes:
        assert tensor[3, :, :num_tokens].isnan().all()
        assert not tensor[3, :, num_tokens:].any()
        assert tensor[[0, 1, 2, 4]].isnan().all()


@pytest.mark.parametrize("block_id", [-1, 5])
def test_a_block_outside_of_the_pool_is_an_error(block_id: int) -> None:
    cache = cache_of()
    with pytest.raises(InternalError, match="outside of the pool of 5"):
        cache.block_view(block_id)
    with pytest.raises(InternalError, match="outside of the pool of 5"):
        cache.zero_tail(block_id, 0)


def test_an_empty_cache_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        cache_of(num_blocks=0)
    with pytest.raises(ConfigurationError):
        cache_of(planes=())


def test_planes_that_would_not_be_aligned_are_refused() -> None:
    planes = (Plane(0, "key", 1, 1, "bfloat16"), Plane(0, "value", 1, 1, "float32"))
    with pytest.raises(ConfigurationError, match="not aligned"):
        KVCache(KVLayout("model", "numerics", 1, planes), 2, CPU)
