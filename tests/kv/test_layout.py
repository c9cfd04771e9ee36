import dataclasses

import pytest

from services.kv.layout import KVLayout, ParallelShape, Plane


def layout(**changes: object) -> KVLayout:
    planes = (
        Plane(0, "key", 3, 64, "bfloat16"),
        Plane(0, "value", 3, 64, "bfloat16"),
        Plane(1, "latent", 1, 576, "bfloat16"),
    )
    base = KVLayout(model_identity="model", numerics_class="bf16", block_size=16, planes=planes)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_a_block_is_the_sum_of_its_planes_and_planes_lie_one_after_the_other() -> None:
    assert layout().block_bytes == 2 * (3 * 16 * 64 * 2) + 16 * 576 * 2
    assert layout().plane_offsets == (0, 6144, 12288)


@pytest.mark.parametrize(
    "change",
    [
        {"model_identity": "other"},
        {"numerics_class": "fp32"},
        {"block_size": 32},
        {"planes": (Plane(0, "key", 3, 64, "bfloat16"),)},
        {"parallel": ParallelShape(tensor=2)},
        {"version": 99},
    ],
)
def test_every_field_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert layout(**change).fingerprint != layout().fingerprint


def test_equal_layouts_have_equal_fingerprints() -> None:
    assert layout().fingerprint == layout().fingerprint


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for_tokens_round_up(tokens: int, blocks: int) -> None:
    assert layout().num_blocks(tokens) == blocks
