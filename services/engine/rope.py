"""Rotary embeddings whose frequencies depend on the longest position of a batch, frozen to one regime.

Transformers' ``longrope`` and ``dynamic`` types look at the largest position in the whole packed batch: a short
sequence would change with its neighbours, and within itself as it grows. Loading freezes them to what the context
length needs.
"""

from typing import Any

import torch

_VARYING = ("longrope", "dynamic")


def freeze(model: torch.nn.Module, context_length: int, device: torch.device) -> bool:
    """Freeze every varying rotary embedding in ``model``; return whether there was one."""
    frozen = False
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, dict):
            varying = {name: None for name, kind in rope_type.items() if _varies(kind)}
            for name in varying:
                _settle(module, context_length, device, layer_type=name)
            module.rope_type = rope_type | dict.fromkeys(varying, "default")  # type: ignore[assignment]
            frozen |= bool(varying)
        elif _varies(rope_type):
            _settle(module, context_length, device)
            module.rope_type = "default"  # type: ignore[assignment]
            frozen = True
    return frozen


def _varies(rope_type: object) -> bool:
    return isinstance(rope_type, str) and any(name in rope_type for name in _VARYING)


def _settle(module: torch.nn.Module, context_length: int, device: torch.device, **layer_type: Any) -> None:
    """Run the embedding once at the last position; it keeps the frequencies of that length."""
    position = torch.tensor([[context_length - 1]], device=device)
    module(torch.zeros(1, 1, 1, device=device), position, **layer_type)
