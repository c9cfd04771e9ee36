"""Attention problems for every backend, and the answer by plain dense attention in float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.engine.attention.backend import AttentionBackend, AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.schedule import ScheduledSequence


@dataclass(frozen=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    key_width: int = 64
    value_width: int = 64
    latent: bool = False
    """One head; values are the first ``value_width`` columns of the keys."""


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape = Shape()
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: bool = False
    scaling: float | None = None

    def options(self, device: torch.device) -> AttentionOptions:
        generator = torch.Generator().manual_seed(5)
        sinks = torch.randn(self.shape.heads, generator=generator).to(device) if self.sinks else None
        scaling = self.shape.key_width**-0.5 if self.scaling is None else self.scaling
        return AttentionOptions(scaling, self.window, self.chunk, self.softcap, sinks)


CASES = (
    Case("grouped heads"),
    Case("one head each", Shape(4, 4, 32, 32)),
    Case("one shared head", Shape(8, 1, 16, 16)),
    Case("nine heads over three", Shape(9, 3)),
    Case("narrower values", Shape(4, 2, 48, 32)),
    Case("widths that fill no vector", Shape(4, 2, 20, 12)),
    Case("odd widths", Shape(3, 1, 33, 7)),
    Case("wide heads", Shape(2, 1, 256, 256)),
    Case("window", window=24),
    Case("window of one", window=1),
    Case("long window", window=100),
    Case("chunks", chunk=32),
    Case("softcap", softcap=5.0),
    Case("sinks", sinks=True),
    Case("all at once", Shape(8, 2, 40, 24), window=19, softcap=3.0, sinks=True, scaling=0.3),
    Case("latent", Shape(5, 1, 72, 64, latent=True)),
)

SEQUENCES = ((0, 1), (0, 70), (16, 33), (64, 64), (199, 1), (127, 1), (128, 1), (3, 5))
"""(tokens computed before, tokens computed now): decode and prefill in one batch, on and off block borders."""


@dataclass
class Problem:
    """Random tokens of several sequences; ``key[i]`` is ``[context, kv_heads, width]``, ``query[i]`` likewise."""

    case: Case
    dtype: torch.dtype
    query: list[torch.Tensor]
    key: list[torch.Tensor]
    value: list[torch.Tensor]

    @classmethod
    def random(cls, case: Case, contexts: Sequence[int], dtype: torch.dtype, device: torch.device) -> "Problem":
        generator = torch.Generator().manual_seed(11)
        shape = case.shape

        def tokens(heads: int, width: int) -> list[torch.Tensor]:
            return [torch.randn(n, heads, width, generator=generator).to(dtype).to(device) for n in contexts]

        query, key = tokens(shape.heads, shape.key_width), tokens(shape.kv_heads, shape.key_width)
        if shape.latent:
            return cls(case, dtype, query, key, [rows[..., : shape.value_width] for rows in key])
        return cls(case, dtype, query, key, tokens(shape.kv_heads, shape.value_width))

    def dense(self, index: int) -> torch.Tensor:
        """Float64 ``[context, heads, value_width]``."""
        query, key, value = (rows[index].double().transpose(0, 1) for rows in (self.query, self.key, self.value))
        options, group = self.case.options(query.device), self.case.shape.heads // self.case.shape.kv_heads
        key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
        scores = query @ key.transpose(1, 2) * options.scaling
        if options.softcap:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        at = torch.arange(query.shape[1], device=query.device)
        hidden = at[None, :] > at[:, None]
        if options.window:
            hidden |= at[None, :] <= at[:, None] - options.window
        if options.chunk:
            hidden |= at[None, :] // options.chunk != at[:, None] // options.chunk
        scores = scores.masked_fill(hidden, -torch.inf)
        if options.sinks is not None:
            sinks = options.sinks.double()[:, None, None].expand(-1, query.shape[1], 1)
            scores = torch.cat((scores, sinks), dim=-1)
        weights = scores.softmax(-1)[..., : query.shape[1]]
        return (weights @ value).transpose(0, 1)


class Pool:
    """Planes of one layer in block-major memory, full of NaN, and a random table for each sequence."""

    def __init__(self, problem: Problem, block_size: int, *, seed: int = 3) -> None:
        shape, device = problem.case.shape, problem.query[0].device
        needed = [-(-len(rows) // block_size) for rows in problem.query]
        self.block_size, self.num_blocks = block_size, sum(needed) + 3
        order = torch.randperm(self.num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in needed]
        values = 0 if shape.latent else shape.kv_heads * shape.value_width * block_size
        keys = shape.kv_heads * shape.key_width * block_size
        memory = torch.full((self.num_blocks, keys + values + 32), torch.nan, dtype=problem.dtype, device=device)
        self.keys = self._plane(memory, 16, shape.kv_heads, shape.key_width)
        self.values = (
            self.keys[..., : shape.value_width]
            if shape.latent
            else self._plane(memory, 16 + keys, shape.kv_heads, shape.value_width)
        )

    def _plane(self, memory: torch.Tensor, offset: int, heads: int, width: int) -> torch.Tensor:
        strides = (memory.stride(0), self.block_size * width, width, 1)
        return memory.as_strided((self.num_blocks, heads, self.block_size, width), strides, offset)


def run(
    backend: AttentionBackend, problem: Problem, pool: Pool, pieces: Sequence[tuple[int, int, int]]
) -> list[torch.Tensor]:
    """Run ``(sequence, start, count)`` pieces as one batch; return ``[count, heads, value_width]`` each."""
    scheduled = [ScheduledSequence([0] * count, start, pool.tables[index], True) for index, start, count in pieces]
    device = pool.keys.device
    batch = PackedBatch.of(scheduled, pool.block_size, num_blocks=pool.num_blocks, device=device)

    def packed(rows: list[torch.Tensor]) -> torch.Tensor:
        together = torch.cat([rows[index][start : start + count] for index, start, count in pieces])
        padding = together.new_full((batch.num_padded_rows - batch.num_rows, *together.shape[1:]), 0.5)
        # heads-first memory, as models hand it over
        return torch.cat((together, padding)).transpose(0, 1).contiguous().transpose(0, 1)

    backend.store(batch, packed(problem.key), pool.keys)
    if not problem.case.shape.latent:
        backend.store(batch, packed(problem.value), pool.values)
    output = backend.attend(batch, packed(problem.query), pool.keys, pool.values, problem.case.options(device))
    assert output.is_contiguous()
    assert output.shape[0] == batch.num_padded_rows
    assert not output[batch.num_rows :].any()
    return list(torch.split(output[: batch.num_rows], [count for _, _, count in pieces]))


def prefill_prefixes(backend: AttentionBackend, problem: Problem, pool: Pool, starts: Sequence[int]) -> None:
    """Fill the cache with what was computed before."""
    pieces = [(index, 0, start) for index, start in enumerate(starts) if start]
    if pieces:
        run(backend, problem, pool, pieces)
