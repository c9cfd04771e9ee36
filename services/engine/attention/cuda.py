"""Paged attention on NVIDIA GPUs. NEVER RUN ON A GPU YET: see docs/gpu.md for the command that proves it.

FlashAttention 3 through ``torch.nn.attention.varlen.varlen_attn`` where it is installed on a Hopper GPU, else the
paged kernels of flash-attn 2 (blocks of 256 tokens), else gathering. Layers with options that a kernel does
not have (softcap in FlashAttention 3, sinks, chunks, a value width of its own) gather their blocks.
"""

import importlib
import importlib.util
from typing import Any

import torch

from services.engine.attention.backend import AttentionBackend, AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.attention.gather import GatherAttention
from services.errors import ModelRefused

HALF_DTYPES = (torch.float16, torch.bfloat16)
MAX_FLASH_WIDTH = 256


def default_backend(device: torch.device, dtype: torch.dtype, *, exact: bool = False) -> AttentionBackend:
    """Return the best backend for a GPU; ``exact`` trades split-KV for independence of the batch.

    Raises:
        ModelRefused: the device is no NVIDIA GPU.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        raise ModelRefused(f"no attention backend for the device {device}: CPU and NVIDIA GPUs are known")
    capability = torch.cuda.get_device_capability(device)
    if dtype in HALF_DTYPES and capability[0] == 9 and importlib.util.find_spec("flash_attn_interface"):
        return FlashAttention3(exact=exact)
    if dtype in HALF_DTYPES and capability[0] >= 8 and importlib.util.find_spec("flash_attn"):
        return FlashAttention2()
    return GatherAttention()


def _window(options: AttentionOptions) -> tuple[int, int]:
    return (-1 if options.window is None else options.window - 1, 0)


def _tokens_first(plane: torch.Tensor) -> torch.Tensor:
    """Return the view ``[num_blocks, block_size, heads, width]`` that both libraries read."""
    return plane.transpose(1, 2)


def _fits(query: torch.Tensor, values: torch.Tensor, options: AttentionOptions) -> bool:
    plain = options.sinks is None and options.chunk is None
    return plain and query.shape[2] == values.shape[3] <= MAX_FLASH_WIDTH and query.shape[2] % 8 == 0


class FlashAttention3(GatherAttention):
    """FlashAttention 3 behind torch's variable-length interface with a block table."""

    def __init__(self, *, exact: bool = False) -> None:
        super().__init__(block_size=64)
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl("FA3")
        self._num_splits = 1 if exact else None

    @property
    def kernel_set(self) -> str:
        """Name of the arithmetic."""
        return "flash-attention-3" if self._num_splits is None else "flash-attention-3-exact"

    def attend(
        self,
        batch: PackedBatch,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attend through the block table, or gather where the kernel lacks an option."""
        if not _fits(query, values, options) or options.softcap is not None:
            return super().attend(batch, query, keys, values, options)
        from torch.nn.attention.varlen import varlen_attn

        output = query.new_zeros(batch.num_padded_rows, query.shape[1], values.shape[3])
        attended = varlen_attn(
            query[: batch.num_rows].contiguous(),
            _tokens_first(keys),
            _tokens_first(values),
            batch.query_starts,
            None,
            batch.max_query_length,
            batch.max_context_length,
            scale=options.scaling,
            window_size=_window(options),
            enable_gqa=True,
            seqused_k=batch.context_lengths,
            block_table=batch.block_tables,
            num_splits=self._num_splits,
        )
        output[: batch.num_rows] = attended if isinstance(attended, torch.Tensor) else attended[0]
        return output


class FlashAttention2(GatherAttention):
    """The paged kernels of the flash-attn 2 package; its pages are multiples of 256 tokens."""

    def __init__(self) -> None:
        super().__init__(block_size=256)
        self._library: Any = importlib.import_module("flash_attn")

    @property
    def kernel_set(self) -> str:
        """Name of the arithmetic."""
        return "flash-attention-2"

    def attend(
        self,
        batch: PackedBatch,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attend through the block table, or gather where the kernel lacks an option."""
        if not _fits(query, values, options):
            return super().attend(batch, query, keys, values, options)
        output = query.new_zeros(batch.num_padded_rows, query.shape[1], values.shape[3])
        output[: batch.num_rows] = self._library.flash_attn_varlen_func(
            query[: batch.num_rows].contiguous(),
            _tokens_first(keys),
            _tokens_first(values),
            cu_seqlens_q=batch.query_starts,
            cu_seqlens_k=_key_starts(batch),
            max_seqlen_q=batch.max_query_length,
            max_seqlen_k=batch.max_context_length,
            softmax_scale=options.scaling,
            causal=True,
            window_size=_window(options),
            softcap=options.softcap or 0.0,
            block_table=batch.block_tables,
        )
        return output


def _key_starts(batch: PackedBatch) -> torch.Tensor:
    starts = torch.zeros(len(batch.context_lengths) + 1, dtype=torch.int32, device=batch.context_lengths.device)
    starts[1:] = batch.context_lengths.cumsum(0)
    return starts
