"""Puts the fused modules into a model, wherever it is written as those that we know."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from services.engine.fused import recognition
from services.engine.fused.modules import Attention, DecoderLayer, GatedMLP, Norm
from services.engine.fused.rows import RowOperators
from services.engine.products.modules import Linear

_Replacement = Callable[[Any], nn.Module | None]


def use_fused(model: nn.Module, operators: RowOperators, dtype: torch.dtype) -> int:
    """Change ``model`` in place, once, after its linear layers were replaced; return how many layers are fused.

    Parts come before wholes, so that a layer finds its parts fused already.
    """

    def has_dtype(*modules: Any) -> bool:
        return all(module.weight.dtype is dtype for module in modules)

    def norm(module: Any) -> nn.Module | None:
        known = recognition.is_written_as(module, recognition.RMS_NORM) and has_dtype(module)
        return Norm(module, operators) if known else None

    def mlp(module: Any) -> nn.Module | None:
        if not recognition.is_written_as(module, recognition.GATED_MLP):
            return None
        is_ours = _are_linear(module.gate_proj, module.up_proj, module.down_proj)
        is_silu = isinstance(module.act_fn, SiLUActivation | nn.SiLU)
        return GatedMLP(module, operators) if is_ours and is_silu and has_dtype(module.down_proj) else None

    def attention(module: Any) -> nn.Module | None:
        window = recognition.attention_window(module)
        if window is None or not _are_linear(module.q_proj, module.k_proj, module.v_proj, module.o_proj):
            return None
        return Attention(module, window[0], operators) if has_dtype(module.o_proj) else None

    def layer(module: Any) -> nn.Module | None:
        if not recognition.is_written_as(module, recognition.DECODER_LAYER):
            return None
        return DecoderLayer(module, attention(module.self_attn) or module.self_attn)

    _replace(model, norm)
    _replace(model, mlp)
    return _replace(model, layer)


def _replace(model: nn.Module, replacement: _Replacement) -> int:
    num_replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (ours := replacement(child)) is not None:
                setattr(parent, name, ours)
                num_replaced += 1
    return num_replaced


def _are_linear(*modules: nn.Module) -> bool:
    return all(isinstance(module, Linear) for module in modules)
