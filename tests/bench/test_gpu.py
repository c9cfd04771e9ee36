from pathlib import Path

import pytest
import torch

from bench.gpu.__main__ import SMALL, measure_engine
from bench.gpu.engine import DeviceEngine
from bench.gpu.shapes import SHAPES, save

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kernels: Path) -> Path:
    """The model, beside the kernels that this host has compiled already."""
    saved = save(TINY, tmp_path_factory.mktemp("tiny"), torch.float32)
    (saved / "kernels").symlink_to(kernels, target_is_directory=True)
    return saved


def test_every_figure_comes_out(folder: Path) -> None:
    found = measure_engine("tiny", CPU, "float32", folder)

    assert list(found) == ["device", "engine", "exact"]
    assert set(found["engine"]) == {
        *(f"decode_{batch}_{what}" for batch in SMALL.batches for what in ("ms", "floor_share")),
        "prefill_ms",
        "prefill_matrix_share",
    }
    assert all(value > 0 for figures in found.values() for value in figures.values())


def test_a_step_reads_all_weights_and_the_cache_of_each_sequence(folder: Path) -> None:
    engine = DeviceEngine(TINY, folder, "float32", CPU, SMALL, folder / "kernels", exact=False)

    of_each = 4 * SMALL.context * 2 * TINY.layers * TINY.kv_heads * TINY.head_width
    assert engine.step_bytes(2) - engine.step_bytes(1) == of_each
    assert engine.step_bytes(1) - of_each == 4 * TINY.num_read


def test_the_weights_that_count_are_those_of_the_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    products = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert products == TINY.num_read
