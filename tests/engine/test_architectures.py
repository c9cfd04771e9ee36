"""Random small models of each architecture: greedy tokens over the paged cache are those of ``generate``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.engine.loading import LoadedModel
from tests.engine.driving import Driver, bind, load
from tests.engine.random_models import CONFIGS, VOCAB_SIZE, config_of, reference_tokens, save_random

NUM_TOKENS = 20


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (7, 45, 70)]


def chosen(loaded: LoadedModel, *, chunk: int = 16) -> list[list[int]]:
    return Driver(bind(loaded)).greedy(prompts(), NUM_TOKENS, chunk=chunk)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_greedy_tokens_are_those_of_generate(model_type: str, tmp_path: Path, kernels: Path) -> None:
    folder = save_random(tmp_path, config_of(model_type))
    expected = reference_tokens(folder, prompts(), NUM_TOKENS)
    assert len({tuple(tokens) for tokens in expected}) == 3
    assert min(len(set(tokens)) for tokens in expected) > 3, "repeats itself: a vacuous comparison"
    assert chosen(load(folder, kernels)) == expected


@pytest.mark.parametrize(
    ("model_type", "option"),
    [("mistral", "window"), ("gemma3_text", "window"), ("gemma2", "softcap"), ("gpt_oss", "sinks")],
)
def test_dropping_an_option_changes_the_tokens(model_type: str, option: str, tmp_path: Path, kernels: Path) -> None:
    loaded = load(save_random(tmp_path, config_of(model_type)), kernels)
    assert any(getattr(layer.options, option) is not None for layer in loaded.layers)
    dropped: dict[str, Any] = {option: None}
    crippled = [replace(layer, options=replace(layer.options, **dropped)) for layer in loaded.layers]
    assert chosen(replace(loaded, layers=tuple(crippled)))[1:] != chosen(loaded)[1:]


def test_latent_attention_keeps_one_narrow_plane_per_layer(tmp_path: Path, kernels: Path) -> None:
    loaded = load(save_random(tmp_path, config_of("deepseek_v3")), kernels)
    assert [(plane.name, plane.heads, plane.width) for plane in loaded.planes] == [("latent", 1, 32 + 16)] * 3


@pytest.mark.parametrize("model_type", ["qwen2_moe", "phimoe"])
def test_a_window_that_only_the_mask_knows_is_kept(model_type: str, tmp_path: Path, kernels: Path) -> None:
    extra = {"shared_expert_intermediate_size": 48, "use_sliding_window": True, "max_window_layers": 3}
    config = config_of(
        model_type, sliding_window=24, **CONFIGS["mixtral"], **(extra if model_type == "qwen2_moe" else {})
    )
    folder = save_random(tmp_path, config)
    assert chosen(load(folder, kernels)) == reference_tokens(folder, prompts(), NUM_TOKENS)


def test_chunked_attention_is_kept(tmp_path: Path, kernels: Path) -> None:
    config = config_of(
        "llama4_text",
        attention_chunk_size=32,
        head_dim=32,
        intermediate_size_mlp=96,
        interleave_moe_layer_step=2,
        **CONFIGS["mixtral"],
    )
    folder = save_random(tmp_path, config)
    loaded = load(folder, kernels)
    assert [layer.options.chunk for layer in loaded.layers] == [32, 32, 32]
    assert chosen(loaded) == reference_tokens(folder, prompts(), NUM_TOKENS)


def test_frequencies_that_depend_on_the_length_are_frozen(tmp_path: Path, kernels: Path) -> None:
    factors = {"long_factor": [4.0] * 8, "short_factor": [1.0] * 8, "rope_theta": 10000.0}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 32, **factors}
    config = config_of("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    folder = save_random(tmp_path, config)
    loaded = load(folder, kernels)
    together = chosen(loaded)
    alone = [Driver(bind(loaded)).greedy([prompt], NUM_TOKENS, chunk=512)[0] for prompt in prompts()]
    assert together == alone
    assert together[1:] == reference_tokens(folder, prompts(), NUM_TOKENS)[1:], "long prompts have the long factors"
