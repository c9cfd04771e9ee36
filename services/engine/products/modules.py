"""Makes a model use given products, wherever it multiplies with weights.

Linear, Conv1D           replaced by ``Linear`` below
routers, experts, gates  run with ``torch.nn.functional.linear`` redirected
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from services.engine.products.product import Products


def use_products(model: torch.nn.Module, products: Products) -> None:
    """Change ``model`` in place; to be called once, after loading.

    Logits are not rounded: above 16, bfloat16 has steps of 1/8, and tokens that differ would tie.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).forward in (torch.nn.Linear.forward, Conv1D.forward):
                setattr(parent, name, Linear(child, products, unrounded=child is head))
            elif _owns_weights(child):
                _lay_out(child)
                child.forward = _redirected(child.forward, products)


class Linear(torch.nn.Module):
    """A linear layer over the parameters of another one."""

    def __init__(self, layer: torch.nn.Module, products: Products, *, unrounded: bool = False) -> None:
        super().__init__()
        weight, bias = layer.weight, layer.bias
        if isinstance(layer, Conv1D):  # stored as [inner, columns]
            weight = torch.nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)  # type: ignore[operator]
        self.weight, self.bias = weight, bias
        bare = None if bias is None else bias.detach()  # type: ignore[operator]
        self.product = products.with_weight(weight.detach(), bare, unrounded=unrounded)  # type: ignore[operator]
        """Called with rows ``[..., inner]``, and perhaps what to add."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``[..., columns]``."""
        return self.product(rows)


class _Redirected(TorchFunctionMode):
    """Sends ``torch.nn.functional.linear`` to other products."""

    def __init__(self, products: Products) -> None:
        super().__init__()
        self._products = products

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.nn.functional.linear:
            return self._products.linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _redirected(forward: Callable[..., Any], products: Products) -> Callable[..., Any]:
    def run(*values: Any, **options: Any) -> Any:
        with _Redirected(products):
            return forward(*values, **options)

    return run


def _owns_weights(module: torch.nn.Module) -> bool:
    """Whether ``module`` multiplies with matrices of its own."""
    is_lookup = isinstance(module, torch.nn.Embedding)
    return not is_lookup and any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


def _lay_out(module: torch.nn.Module) -> None:
    """Store experts' matrices ``[experts, inner, columns]`` so that each one's transpose is contiguous."""
    if getattr(module, "is_transposed", False):
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3:
                parameter.data = parameter.data.transpose(1, 2).contiguous().transpose(1, 2)
