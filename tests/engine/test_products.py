"""One suite for all matrix products: right, and bitwise the same for a row whatever it is multiplied with."""

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from services.engine.kernels import build
from services.engine.kernels.library import Kernels
from services.engine.products.modules import use_products
from services.engine.products.native import NativeProducts
from services.engine.products.product import Products
from services.engine.products.tiled import TiledProducts
from services.errors import InternalError

MARCHES = ("native", "x86-64-v4", "x86-64-v3", "x86-64") if platform.machine() == "x86_64" else ("native",)
NAMES = [*MARCHES, "tiled"]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 16), (1, 576), (3, 64), (48, 33), (64, 2), (83, 274), (130, 1000), (192, 576)]
"""(columns, inner): whole vectors and groups, and what is left over of both."""
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}

Make = Callable[..., Products]


def flags() -> set[str]:
    return set(build.instruction_sets().split())


@pytest.fixture(scope="module")
def libraries(kernels: Path) -> dict[str, Path]:
    compiler = build.find_compiler()
    assert compiler is not None, "the tests need a C++ compiler"
    return {march: build.build(kernels, compiler, march=march) for march in MARCHES}


@pytest.fixture
def make(libraries: dict[str, Path]) -> Make:
    def make_products(name: str, num_threads: int = 1) -> Products:
        torch.set_num_threads(num_threads)
        if name == "tiled":
            return TiledProducts()
        if (name == "x86-64-v4" and "avx512dq" not in flags()) or (name == "x86-64-v3" and "avx2" not in flags()):
            pytest.skip(f"this CPU does not have {name}")
        return NativeProducts(Kernels(libraries[name], num_threads=num_threads))

    return make_products


def operands(num_rows: int, shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return rows, weight and bias whose products are about 1."""
    columns, inner = shape
    random = torch.Generator().manual_seed(columns * 1000 + inner)
    rows, weight, bias = (torch.randn(size, generator=random) for size in ((num_rows, inner), shape, (columns,)))
    return rows.to(dtype), (weight / inner**0.5).to(dtype), bias.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_products_are_right(name: str, shape: tuple[int, int], dtype: torch.dtype, make: Make) -> None:
    rows, weight, bias = operands(29, shape, dtype)
    products = make(name)
    for addend in (bias, None):
        exact = torch.nn.functional.linear(rows.double(), weight.double(), None if addend is None else addend.double())
        result = products.linear(rows, weight, addend)
        assert result.dtype is dtype
        assert float((result.double() - exact).abs().max()) < TOLERANCE[dtype] * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_see_its_neighbours(name: str, shape: tuple[int, int], dtype: torch.dtype, make: Make) -> None:
    rows, weight, bias = operands(700, shape, dtype)
    products = make(name)
    whole = products.linear(rows, weight, bias)
    for first, last in ((0, 1), (5, 6), (2, 4), (0, 3), (7, 11), (600, 605), (1, 7), (13, 76), (100, 700)):
        assert torch.equal(products.linear(rows[first:last], weight, bias), whole[first:last]), (first, last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_no_bit(name: str, dtype: torch.dtype, make: Make) -> None:
    for shape in SHAPES:
        rows, weight, bias = operands(300, shape, dtype)
        alone = make(name, 1).linear(rows, weight, bias)
        for threads in (2, 3, 5):
            assert torch.equal(make(name, threads).linear(rows, weight, bias), alone)


@pytest.mark.parametrize("name", NAMES)
def test_any_layout_of_rows_and_weights_will_do(name: str, make: Make) -> None:
    rows, weight, _ = operands(24, (48, 64), torch.bfloat16)
    products = make(name)
    expected = products.linear(rows, weight)
    assert torch.equal(products.linear(rows.t().contiguous().t(), weight), expected)
    assert torch.equal(products.linear(rows, weight.t().contiguous().t()), expected)
    assert torch.equal(
        products.linear(torch.cat((rows, rows), 1)[:, :64], torch.cat((weight, weight), 1)[:, 64:]), expected
    )
    assert torch.equal(products.linear(rows.view(2, 3, 4, 64), weight).view(24, 48), expected)
    assert products.linear(rows[:0], weight).shape == (0, 48)


def test_operands_of_different_types_are_a_defect(make: Make) -> None:
    rows, weight, bias = operands(4, (8, 16), torch.bfloat16)
    for mixed in ((rows.float(), weight, bias), (rows, weight.float(), bias), (rows, weight, bias.float())):
        with pytest.raises(InternalError, match="a product of"):
            make("native").linear(*mixed)


class Router(torch.nn.Module):
    """Owns a matrix and multiplies by itself, as routers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 32))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows, self.weight)


class Counting(TiledProducts):
    def __init__(self) -> None:
        self.columns: list[int] = []

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        self.columns.append(weight.shape[0])
        return super().linear(rows, weight, bias)


def test_a_model_multiplies_by_the_given_products_everywhere() -> None:
    layers = [torch.nn.Linear(16, 24), Conv1D(32, 24), Router(), torch.nn.Linear(4, 8, bias=False)]
    model, rows, counting = torch.nn.Sequential(*layers), torch.randn(3, 16), Counting()
    expected = model(rows)
    use_products(model, counting)
    assert torch.allclose(model(rows), expected, atol=1e-5)
    assert counting.columns == [24, 32, 4, 8]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_comes_after_rounding(make: Make, name: str) -> None:
    rows, weight, bias = operands(9, (40, 72), torch.bfloat16)
    product, addend = make(name).with_weight(weight, bias), operands(9, (40, 72), torch.bfloat16)[0][:, :40]
    assert torch.equal(product(rows, addend), addend + product(rows))


@pytest.mark.parametrize("name", MARCHES)
def test_results_that_are_not_rounded_are_the_sums(make: Make, name: str) -> None:
    rows, weight, bias = operands(9, (40, 72), torch.bfloat16)
    sums = make(name).with_weight(weight, bias, unrounded=True)(rows)
    assert sums.dtype is torch.float32
    assert torch.equal(sums.bfloat16(), make(name).linear(rows, weight, bias))
    assert not torch.equal(sums, sums.bfloat16().float())


def test_operands_that_do_not_fit_are_a_defect(make: Make) -> None:
    rows, weight, bias = operands(4, (8, 16), torch.float32)
    for wrong in ((rows[:, :12], weight, bias), (rows, weight[:, :12], bias), (rows, weight, bias[:7])):
        with pytest.raises(InternalError, match="a product of"):
            make("native").linear(*wrong)
    strided = torch.stack((bias, bias), 1)[:, 0]
    assert torch.equal(make("native").linear(rows, weight, strided), make("native").linear(rows, weight, bias))
