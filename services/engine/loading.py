"""Loads a Hugging Face folder for paged attention, or refuses it with the reason."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from services.engine import exactness, experts, mla, probe, rope
from services.engine.attention import interface
from services.engine.attention.backend import AttentionBackend
from services.engine.attention.layers import LayerPlan
from services.engine.fused.install import use_fused
from services.engine.kv_cache import TORCH_DTYPES
from services.engine.numerics import numerics_class
from services.engine.operators import Operators
from services.engine.products.modules import use_products
from services.engine.products.packed import PackedProducts
from services.engine.products.product import Products
from services.engine.refusals import model_class_of, refuse_unloadable
from services.engine.weights.packed import packed_file, read_packed
from services.errors import ModelRefused
from services.kv.layout import Plane

PAGE_BYTES = 4096
_CHECKED_COLUMNS = 4


@dataclass(frozen=True)
class LoadProgress:
    """How much of the weights is in memory."""

    num_bytes: int
    total_bytes: int


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that was probed and can run; ``layers`` say what its cache must hold."""

    module: torch.nn.Module
    layers: tuple[LayerPlan, ...]
    backend: AttentionBackend
    dtype: str
    device: torch.device
    context_length: int
    vocab_size: int
    row_multiple: int
    """What the number of rows of a forward pass must be a multiple of."""
    eos_token_ids: tuple[int, ...]
    numerics_class: str

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The planes of a block, layer by layer."""
        return tuple(plane for layer in self.layers for plane in layer.planes)

    @property
    def block_size(self) -> int:
        """Tokens per block, as the attention backend wants it."""
        return self.backend.block_size


def load_model(
    folder: Path,
    *,
    dtype: str,
    operators: Operators,
    device: torch.device | None = None,
    context_length: int | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
) -> LoadedModel:
    """Load the model in ``folder``; on CPU its safetensors stay memory-mapped, never rewrite them in place.

    ``dtype`` is ``float32``, ``bfloat16`` or ``float16``. ``context_length`` limits the model's own; rotary
    embeddings that depend on it are frozen to it. ``progress`` is called as weights come in.

    Raises:
        ModelRefused: the model cannot run here; the text says why.
    """
    device = device or torch.device("cpu")
    config = refuse_unloadable(folder)
    text_config = config.get_text_config(decoder=True)
    limit = _context_length(text_config, context_length)
    module = _load(folder, config, TORCH_DTYPES[dtype], device)
    if device.type == "cpu":
        use_products(module, _products(folder, module, TORCH_DTYPES[dtype], operators))
        if operators.rows is not None:
            use_fused(module, operators.rows, TORCH_DTYPES[dtype])
        exactness.tile_activations(module)
    mla.keep_latents(module)
    with torch.inference_mode():
        rope.freeze(module, limit, device)
    if progress is not None:
        _touch(module, progress)
    measured = probe.measure(module, text_config, device, operators.products)
    return LoadedModel(
        module=module,
        layers=measured.layers,
        backend=operators.attention,
        dtype=dtype,
        device=device,
        context_length=limit,
        vocab_size=measured.vocab_size,
        row_multiple=exactness.row_multiple(module) if device.type == "cpu" else 1,
        eos_token_ids=_eos_token_ids(module, config),
        numerics_class=numerics_class(
            dtype=dtype, weight_form="dense", execution="eager", backend=operators.attention, device=device
        ),
    )


def _load(folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    interface.register()
    experts.register()
    options: dict[str, Any] = {} if device.type == "cpu" else {"device_map": {"": device}}
    if model_class_of(config)._can_set_experts_implementation():
        options["experts_implementation"] = experts.EXPERTS_NAME
    with _no_progress_bars():
        try:
            module, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=interface.ATTENTION_NAME,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ModelRefused(f"{folder} cannot be loaded: {error}") from error
    _refuse_incomplete(info, folder)
    result: torch.nn.Module = module.eval()
    return result


def _products(folder: Path, module: torch.nn.Module, dtype: torch.dtype, operators: Operators) -> Products:
    """Return the operators' products, with packed weights where folder and host allow."""
    if dtype is not torch.bfloat16 or operators.kernels is None or operators.kernels.packed_linear is None:
        return operators.products
    packed, expanded = read_packed(folder), dict(module.named_parameters())
    for name, weight in packed.items():
        stride = max(1, weight.shape[0] // _CHECKED_COLUMNS)
        if name not in expanded or not weight.is_same(expanded[name].detach(), stride=stride):
            raise ModelRefused(f"{name} in {packed_file(folder)} is not the one in {folder}: delete the folder")
    return PackedProducts(operators.kernels, {expanded[name].data_ptr(): weight for name, weight in packed.items()})


def _refuse_incomplete(info: dict[str, Any], folder: Path) -> None:
    missing = sorted(str(key) for key in info["missing_keys"])
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelRefused(f"{folder} lacks {len(missing)} weights, the first is {missing[0]}")
    if mismatched:
        raise ModelRefused(f"{folder} has {len(mismatched)} weights of another shape, the first is {mismatched[0]}")


def _context_length(text_config: Any, wanted: int | None) -> int:
    known = getattr(text_config, "max_position_embeddings", None)
    if wanted is not None and known is not None and wanted > known:
        raise ModelRefused(f"the model's context is {known} tokens, {wanted} were asked for")
    limit = wanted or known
    if limit is None:
        raise ModelRefused("the model's configuration names no context length: set one")
    return int(limit)


def _eos_token_ids(module: Any, config: Any) -> tuple[int, ...]:
    generation = getattr(module, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    ids = config.eos_token_id if ids is None else ids
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)


def _touch(module: torch.nn.Module, progress: Callable[[LoadProgress], None]) -> None:
    """Read each page of the memory-mapped weights once, so that the first request does not wait for the disk."""
    unique = {tensor.data_ptr(): tensor for tensor in (*module.parameters(), *module.buffers())}
    total = sum(tensor.nbytes for tensor in unique.values())
    done = 0
    for tensor in unique.values():
        if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.numel():
            tensor.detach().view(-1).view(torch.uint8)[::PAGE_BYTES].sum()
        done += tensor.nbytes
        progress(LoadProgress(done, total))


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Transformers draws bars on stderr, where the log goes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
