"""Compares operators with those in plain torch before anybody relies on them: a miscompiled kernel is never used."""

import torch

from services.engine.attention.backend import AttentionBackend, AttentionOptions
from services.engine.attention.batch import PackedBatch
from services.engine.attention.reference import ReferenceAttention
from services.engine.fused.rows import RowOperators
from services.engine.kernels.library import Kernels
from services.engine.operators import Operators
from services.engine.products.native import NativeProduct
from services.engine.products.packed import PackedProduct
from services.engine.products.product import Products
from services.engine.schedule import ScheduledSequence
from services.engine.weights.packed import PackedWeight, four_bits

_HEADS, _KV_HEADS, _WIDTH = 6, 2, 64
_NUM_BLOCKS = 24
_ROWS, _COLUMNS, _INNER = 13, 83, 274
_BLOCKS = 3
_EPSILON = 1e-5
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}


def attention_difference(backend: AttentionBackend, dtype: torch.dtype) -> float:
    """Return how far ``backend`` is from plain torch on a prompt chunk, a later chunk and a decode row."""
    random = torch.Generator().manual_seed(7)
    shape = (_NUM_BLOCKS, _KV_HEADS, backend.block_size, _WIDTH)
    keys, values = (torch.randn(shape, generator=random).to(dtype) for _ in range(2))
    tables = torch.randperm(_NUM_BLOCKS, generator=random).tolist()
    spans = ((0, 5 * backend.block_size + 3, tables[:6]), (70, 9, tables[6:12]), (150, 1, tables[12:24]))
    sequences = [ScheduledSequence([0] * length, start, table, True) for start, length, table in spans]
    batch = PackedBatch.of(sequences, backend.block_size, num_blocks=_NUM_BLOCKS, device=torch.device("cpu"))
    query = torch.randn((batch.num_padded_rows, _HEADS, _WIDTH), generator=random).to(dtype)
    options = AttentionOptions(scaling=_WIDTH**-0.5)
    with torch.inference_mode():
        ours = backend.attend(batch, query, keys, values, options)[: batch.num_rows]
        theirs = ReferenceAttention().attend(batch, query, keys, values, options)[: batch.num_rows]
    return _largest(ours, theirs)


def product_difference(products: Products, dtype: torch.dtype) -> float:
    """Return how far ``products`` are from float64 sums of terms whose sum is about 1, for few and for many rows."""
    random = torch.Generator().manual_seed(7)
    rows, weight, bias = (
        (torch.randn(shape, generator=random) / scale).to(dtype)
        for shape, scale in (((_ROWS, _INNER), 1.0), ((_COLUMNS, _INNER), _INNER**0.5), ((_COLUMNS,), 1.0))
    )
    exact = torch.nn.functional.linear(rows.double(), weight.double(), bias.double())
    with torch.inference_mode():
        return max(_largest(products.linear(rows[:count], weight, bias), exact[:count]) for count in (1, 2, _ROWS))


def packed_is_exact(kernels: Kernels) -> bool:
    """Return whether products with packed weights are bitwise those with expanded ones, for few and for many rows."""
    random = torch.Generator().manual_seed(7)
    scales = torch.randn((_COLUMNS, _BLOCKS, 2), generator=random).half()
    quants = torch.randint(0, 256, (_COLUMNS, _BLOCKS, 32), generator=random, dtype=torch.uint8)
    weights = four_bits(scales, quants & 15), PackedWeight(scales[..., :1].contiguous(), quants.view(torch.int8))
    for packed in weights:
        weight = packed.expanded()
        rows = torch.randn((_ROWS, weight.shape[1]), generator=random).bfloat16()
        ours, expected = PackedProduct(kernels, weight, packed, None), NativeProduct(kernels, weight, None)
        if not all(torch.equal(ours(rows[:count]), expected(rows[:count])) for count in (1, 3, _ROWS)):
            return False
    return True


def rows_difference(operators: RowOperators, dtype: torch.dtype) -> float:
    """Return how far norm, rotary embedding and gate are from float64, for rows that fill no whole vectors."""
    random = torch.Generator().manual_seed(7)
    rows, others = (torch.randn((_ROWS, _COLUMNS), generator=random).to(dtype) for _ in range(2))
    weight, angles = torch.rand(_COLUMNS, generator=random).to(dtype), torch.rand((_ROWS, _WIDTH), generator=random)
    heads = torch.randn((_ROWS, _HEADS, _WIDTH), generator=random).to(dtype)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = heads.double().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    scale = rows.double().pow(2).mean(-1, keepdim=True).add(_EPSILON).rsqrt()
    pairs = (
        (operators.norm(rows, weight, _EPSILON), rows.double() * scale * weight.double()),
        (operators.gate(rows, others), torch.nn.functional.silu(rows.double()) * others.double()),
        (_rotated(operators, heads, cos, sin), heads.double() * cos.double()[:, None] + turned * sin.double()[:, None]),
    )
    return max(_largest(ours, exact) for ours, exact in pairs)


def _rotated(operators: RowOperators, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    heads = heads.clone()
    operators.rotate(heads, cos, sin)
    return heads


def agrees(operators: Operators, dtype: torch.dtype) -> bool:
    """Return whether the differences are within what rounding explains; NaN never is."""
    differences = [attention_difference(operators.attention, dtype), product_difference(operators.products, dtype)]
    if operators.rows is not None:
        differences.append(rows_difference(operators.rows, dtype))
    if operators.kernels is not None and operators.kernels.packed_linear is not None:
        differences.append(0.0 if packed_is_exact(operators.kernels) else torch.inf)
    return all(difference <= _TOLERANCE[dtype] for difference in differences)


def _largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max())
