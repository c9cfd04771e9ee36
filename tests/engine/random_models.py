"""Small models with random weights, saved as Hugging Face folders: wide top-2 gaps, untied embeddings."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB_SIZE = 160
BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_SLIDING = {"sliding_window": 24}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "mistral": _SLIDING,
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0, **_SLIDING},
    "gemma3_text": {
        "head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        **_SLIDING,
    },
    "phi3": {},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4},
    "mixtral": _MOE,
    "qwen3_moe": {"head_dim": 32, "decoder_sparse_step": 1, **_MOE},
    "deepseek_v3": {**_MOE, **_LATENT},
    "gpt_oss": {"head_dim": 32, **_MOE, **_SLIDING},
}


def config_of(model_type: str, **changes: Any) -> Any:
    """Return the small configuration of a model type."""
    values = BASE | CONFIGS.get(model_type, {}) | changes
    if model_type == "gpt2":
        values["n_inner"] = values["intermediate_size"]
        renamed = ("hidden_size", "intermediate_size", "max_position_embeddings")
        values["n_positions"] = values["max_position_embeddings"]
        values = {key: value for key, value in values.items() if key not in renamed}
    return AutoConfig.for_model(model_type, **values)


def save_random(folder: Path, config: Any, *, seed: int = 0) -> Path:
    """Write a model with random weights, scaled so that attention and experts matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _randomise(name, parameter, generator)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


def _randomise(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("sinks"):
        parameter.copy_(noise + 1.0)
    elif parameter.ndim == 1:
        parameter.add_(0.1 * noise)
    elif "embed" in name or "wte" in name:
        parameter.copy_(noise)
    else:
        gain = (
            2.5 if any(part in name for part in ("q_proj", "k_proj", "qkv", "q_b_proj", "c_attn", "lm_head")) else 1.2
        )
        fan_in = parameter.shape[-1] if "c_" not in name and "experts" not in name else min(parameter.shape[-2:])
        parameter.copy_(noise * gain * fan_in**-0.5)


def reference_tokens(folder: Path, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Return what transformers' ``generate`` chooses greedily in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    results = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=2
        )
        results.append(output[0, len(prompt) :].tolist())
    return results
