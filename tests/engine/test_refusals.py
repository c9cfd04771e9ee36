"""What cannot run over a paged cache is refused with the reason, where possible before weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from services.engine.loading import LoadedModel, load_model
from services.engine.operators import Operators
from services.errors import ModelRefused
from tests.engine.random_models import BASE, config_of, save_random


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def load(folder: Path) -> LoadedModel:
    return load_model(folder, dtype="float32", operators=Operators.plain())


def config_only(folder: Path, model_type: str, **values: Any) -> Path:
    """A folder whose weights would break if they were read."""
    AutoConfig.for_model(model_type, **values).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"never read")
    return folder


@pytest.mark.parametrize(
    ("model_type", "values", "reason"),
    [
        ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}, "bloom has no attention interface"),
        ("falcon", {"hidden_size": 64, "num_hidden_layers": 2}, "falcon has no attention interface"),
        ("mamba", {"hidden_size": 64, "num_hidden_layers": 2}, "mamba has recurrent layers"),
        ("jamba", {"hidden_size": 64, "num_hidden_layers": 8}, "jamba has recurrent layers"),
        ("qwen3_next", {"hidden_size": 64, "num_hidden_layers": 4}, "qwen3_next has recurrent layers"),
        ("deepseek_v32", {"num_hidden_layers": 2}, "deepseek_v32 chooses keys with a sparse indexer"),
        ("t5", {"num_layers": 2}, "t5 is an encoder-decoder"),
        ("vit", {}, "vit is no causal language model"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "llama is a quantised checkpoint"),
    ],
)
def test_a_model_that_cannot_run_is_refused_before_its_weights_are_read(
    model_type: str, values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelRefused, match=reason):
        load(config_only(tmp_path, model_type, **values))


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"no config\.json"):
        load(tmp_path)


def test_an_unknown_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    with pytest.raises(ModelRefused, match="is not understood"):
        load(tmp_path)


def test_weights_in_another_format_are_refused(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelRefused, match=r"no \*\.safetensors"):
        load(tmp_path)


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    file = save_random(tmp_path, config_of("llama")) / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"lacks 1 weights, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path)


def test_a_hybrid_of_attention_and_convolution_is_refused_by_the_probe(tmp_path: Path) -> None:
    layer_types = ["conv", "full_attention", "conv"]
    config = AutoConfig.for_model("lfm2", **{**BASE, "layer_types": layer_types, "block_ff_dim": 96})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelRefused, match="only 1 of 3 layers of Lfm2ForCausalLM attend"):
        load(tmp_path)
