"""Fused layers compute what transformers' own code computes, each row by itself, and only where they know that code."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.models.llama import modeling_llama as llama

from services.engine.fused import recognition
from services.engine.fused.modules import Attention, DecoderLayer, GatedMLP, Norm
from services.engine.fused.rows import RowOperators
from services.engine.kernels import build
from services.engine.kernels.library import Kernels
from services.engine.loading import load_model
from services.engine.operators import Operators
from tests.engine.driving import load
from tests.engine.random_models import config_of, save_random

DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = (8, 48, 64, 83)
FUSED = ("llama", "mistral", "qwen2", "qwen3")
ONE_ULP = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
"""Relative; sums and exponentials may be rounded the other way."""
Make = Callable[[int], RowOperators]


@pytest.fixture
def make(kernels: Path) -> Make:
    compiler = build.find_compiler()
    assert compiler is not None, "the tests need a C++ compiler"
    library = build.build(kernels, compiler)
    return lambda num_threads: RowOperators(Kernels(library, num_threads=num_threads))


def values(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_norm_is_that_of_transformers(make: Make, width: int, dtype: torch.dtype) -> None:
    norm = llama.LlamaRMSNorm(width, eps=1e-5).to(dtype)
    norm.weight.data = values(1, width, dtype=dtype)
    rows = values(2, 7, width, dtype=dtype)
    ours = make(1).norm(rows, norm.weight.detach(), 1e-5)
    torch.testing.assert_close(ours, norm(rows).detach(), rtol=ONE_ULP[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 48, 64, 86])
def test_the_rotary_embedding_is_bitwise_that_of_transformers(make: Make, width: int, dtype: torch.dtype) -> None:
    heads, angles = values(3, 5, 3, width, dtype=dtype), values(4, 5, width, dtype=torch.float32)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    by_head = heads.transpose(0, 1)[None]
    expected, _ = llama.apply_rotary_pos_emb(by_head, by_head, cos[None], sin[None])
    make(1).rotate(heads, cos, sin)
    assert torch.equal(heads, expected[0].transpose(0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_gate_is_that_of_torch(make: Make, width: int, dtype: torch.dtype) -> None:
    gate, up = values(5, 6, width, dtype=dtype), values(6, 6, width, dtype=dtype)
    gate[0, :3] = torch.tensor([-200.0, 0.0, 200.0])
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(make(1).gate(gate, up), expected, rtol=2 * ONE_ULP[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_itself_alone(make: Make, dtype: torch.dtype) -> None:
    rows, up, weight = (
        values(seed, *shape, dtype=dtype) for seed, shape in ((1, (900, 83)), (2, (900, 83)), (3, (83,)))
    )
    heads, angles = values(4, 900, 3, 64, dtype=dtype), values(5, 900, 64, dtype=dtype)
    outcomes = []
    for num_threads, step in ((1, 900), (2, 900), (1, 1), (2, 300)):
        operators, turned, parts = make(num_threads), heads.clone(), []
        for start in range(0, 900, step):
            part = slice(start, start + step)
            operators.rotate(turned[part], angles[part], angles[part])
            normed, gated = operators.norm(rows[part], weight, 1e-5), operators.gate(rows[part], up[part])
            parts.append(torch.cat((normed, gated), dim=1))
        outcomes.append(torch.cat((torch.cat(parts), turned.flatten(1)), dim=1))
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes[1:])


@pytest.mark.parametrize("model_type", FUSED)
def test_layers_that_are_written_like_known_ones_are_fused(model_type: str, tmp_path: Path, kernels: Path) -> None:
    module = load(save_random(tmp_path, config_of(model_type)), kernels).module
    layers = [each for each in module.modules() if isinstance(each, DecoderLayer)]
    assert len(layers) == module.config.num_hidden_layers  # type: ignore[union-attr]
    for layer in layers:
        assert isinstance(layer.self_attn, Attention)
        assert isinstance(layer.mlp, GatedMLP)
        assert isinstance(layer.input_layernorm, Norm)
        assert isinstance(layer.post_attention_layernorm, Norm)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "gpt_oss"])
def test_others_run_as_they_are_written(model_type: str, tmp_path: Path, kernels: Path) -> None:
    module = load(save_random(tmp_path, config_of(model_type)), kernels).module
    assert not any(isinstance(each, DecoderLayer) for each in module.modules())


def test_without_our_kernels_nothing_is_fused(tmp_path: Path) -> None:
    loaded = load_model(save_random(tmp_path, config_of("llama")), dtype="float32", operators=Operators.plain())
    assert not any(isinstance(each, DecoderLayer | Norm | GatedMLP) for each in loaded.module.modules())


def test_another_text_is_not_known() -> None:
    class Centred(llama.LlamaRMSNorm):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))
            return result

    assert recognition.is_written_as(llama.LlamaRMSNorm(8), recognition.RMS_NORM)
    assert not recognition.is_written_as(Centred(8), recognition.RMS_NORM)


def test_a_rotary_embedding_of_another_kind_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = llama.LlamaAttention(llama.LlamaConfig(), layer_idx=0)
    assert recognition.attention_window(attention) == (None,)
    monkeypatch.setattr(llama, "rotate_half", lambda rows: rows)
    assert recognition.attention_window(attention) is None
