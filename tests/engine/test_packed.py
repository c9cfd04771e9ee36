"""Packed weights give the bits of the same weights in bfloat16: alone, in a model, and after a conversion."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.engine.kernels.library import Kernels
from services.engine.loading import LoadedModel, load_model
from services.engine.operators import Operators
from services.engine.products.native import NativeProduct
from services.engine.products.packed import PackedProduct, PackedProducts
from services.engine.self_check import packed_is_exact
from services.engine.weights.gguf import converted_folder
from services.engine.weights.identity import model_identity
from services.engine.weights.packed import PackedWeight, four_bits, packed_file, read_packed
from services.errors import ConfigurationError, InternalError, ModelRefused
from tests.engine.driving import Driver, bind, native
from tests.engine.weights import tiny_gguf

Q4_1, Q8_0, Q4_0 = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0", "Q4_0"))
NUM_ROWS = [*range(1, 34), 64, 512]
SHAPES = [(1, 1), (49, 3), (192, 18), (67, 48)]
"""(columns, blocks): whole panels and vectors, and what is left over of both."""
SPECIAL_SCALES = (0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-15, -3.5, 65504.0)
"""Zeros, the least subnormal float16 and others, the largest."""


@pytest.fixture
def make(kernels: Path) -> Callable[[int], Kernels]:
    def made(num_threads: int) -> Kernels:
        found = native(kernels, num_threads=num_threads).kernels
        assert found is not None
        if found.packed_linear is None:
            pytest.skip("this CPU does not have AVX-512 with bfloat16")
        return found

    return made


def random_weight(bits: int, shape: tuple[int, int], seed: int = 0) -> PackedWeight:
    columns, blocks = shape
    random = torch.Generator().manual_seed(seed)
    scales = torch.randn((columns, blocks, 2 if bits == 4 else 1), generator=random).mul(0.1).half()
    some = torch.rand(scales.shape, generator=random) < 0.3
    special = torch.tensor(SPECIAL_SCALES)[torch.randint(0, len(SPECIAL_SCALES), scales.shape, generator=random)]
    scales = torch.where(some, special.half(), scales)
    quants = torch.randint(0, 256, (columns, blocks, 32), generator=random, dtype=torch.uint8)
    return four_bits(scales, quants & 15) if bits == 4 else PackedWeight(scales, quants.view(torch.int8))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_bitwise_those_of_the_expanded_weights(
    bits: int, shape: tuple[int, int], num_threads: int, make: Callable[[int], Kernels]
) -> None:
    kernels, packed = make(num_threads), random_weight(bits, shape)
    weight = packed.expanded()
    random = torch.Generator().manual_seed(1)
    rows, addend, bias = (
        torch.randn(size, generator=random).bfloat16()
        for size in ((512, weight.shape[1]), (512, weight.shape[0]), weight.shape[:1])
    )
    ours, expected = PackedProduct(kernels, weight, packed, bias), NativeProduct(kernels, weight, bias)
    sums = PackedProduct(kernels, weight, packed, None, unrounded=True)
    expected_sums = NativeProduct(kernels, weight, None, unrounded=True)
    for count in NUM_ROWS:
        some = rows[-count:]
        assert torch.equal(ours(some, addend[:count]), expected(some, addend[:count])), count
        assert torch.equal(sums(some), expected_sums(some)), count


def test_few_rows_do_not_read_the_expanded_weight(make: Callable[[int], Kernels]) -> None:
    kernels, packed = make(1), random_weight(4, (33, 2))
    weight = packed.expanded()
    expected = NativeProduct(kernels, weight.clone(), None)(torch.ones(3, 64, dtype=torch.bfloat16))
    product = PackedProduct(kernels, weight, packed, None)
    weight.fill_(torch.nan)
    assert torch.equal(product(torch.ones(3, 64, dtype=torch.bfloat16)), expected)


@pytest.mark.parametrize(("bits", "kind"), [(4, Q4_1), (8, Q8_0)])
def test_the_expanded_weight_is_what_the_file_means(bits: int, kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    folder = converted(tmp_path, {"ffn_down.weight": kind})
    values = gguf.dequantize(gguf.quantize(tiny_gguf.tensors()["blk.1.ffn_down.weight"], kind), kind)
    packed = read_packed(folder)["model.layers.1.mlp.down_proj.weight"]
    assert packed.bits == bits
    assert torch.equal(packed.expanded(), torch.from_numpy(values).bfloat16())


def test_every_weight_that_is_quantised_in_a_known_form_is_kept_packed(tmp_path: Path) -> None:
    folder = converted(tmp_path, {"ffn_up.weight": Q4_0, "blk.0.attn_v.weight": gguf.GGMLQuantizationType.F16, **MIXED})
    packed, expanded = read_packed(folder), load_file(folder / "model.safetensors")
    matrices = {name for name, weight in expanded.items() if weight.ndim == 2}
    assert matrices - set(packed) == {
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
    }
    assert packed["lm_head.weight"].bits == 8
    assert packed["model.layers.0.self_attn.q_proj.weight"].bits == 4  # its rows are in another order than in the file
    for name, weight in packed.items():
        assert torch.equal(weight.expanded(), expanded[name])


def test_nothing_is_packed_without_quantised_weights_or_in_another_dtype(tmp_path: Path) -> None:
    assert not packed_file(converted(tmp_path / "plain", {})).exists()
    assert not packed_file(converted(tmp_path / "wide", MIXED, dtype="float32")).exists()


def test_the_identity_is_that_of_the_expanded_weights_and_verifying_reads_the_packed_ones(tmp_path: Path) -> None:
    folder = converted(tmp_path, MIXED)
    identity = model_identity(folder, verify=True)
    damaged = bytearray(packed_file(folder).read_bytes())
    damaged[-1] ^= 1
    packed_file(folder).write_bytes(damaged)
    with pytest.raises(ConfigurationError, match="is damaged"):
        model_identity(folder, verify=True)
    shutil.rmtree(packed_file(folder).parent)
    assert model_identity(folder) == identity


def test_a_model_computes_the_same_bits_with_packed_weights(tmp_path: Path, kernels: Path) -> None:
    folder = converted(tmp_path, MIXED)
    assert_same_logits(folder, kernels, num_packed=15)


def test_the_default_model_computes_the_same_bits_with_packed_weights(
    smollm2: Callable[[str], Path], kernels: Path
) -> None:
    assert_same_logits(smollm2("bfloat16"), kernels, num_packed=211)


def test_packed_weights_of_another_model_are_refused(tmp_path: Path, kernels: Path) -> None:
    folder = converted(tmp_path, MIXED)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.gate_proj.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"model\.layers\.0\.mlp\.gate_proj\.weight in .* is not the one"):
        load_model(folder, dtype="bfloat16", operators=native(kernels))


def test_a_model_in_another_dtype_runs_without_them(tmp_path: Path, kernels: Path) -> None:
    loaded = load_model(converted(tmp_path, MIXED), dtype="float32", operators=native(kernels))
    assert count_packed(loaded) == 0


def test_the_check_at_start_sees_a_wrong_kernel(make: Callable[[int], Kernels]) -> None:
    kernels = make(1)
    assert packed_is_exact(kernels)
    kernels.packed_linear = lambda call: None
    assert not packed_is_exact(kernels)


def test_forms_that_do_not_fit_are_a_defect_and_views_are_not_taken_for_the_weight(
    make: Callable[[int], Kernels],
) -> None:
    kernels, packed = make(1), random_weight(8, (48, 2))
    weight = packed.expanded()
    for wrong in (weight.float(), weight[:40]):
        with pytest.raises(InternalError, match="packed weights"):
            PackedProduct(kernels, wrong, packed, None)
    products = PackedProducts(kernels, {weight.data_ptr(): packed})
    assert isinstance(products.with_weight(weight, None), PackedProduct)
    for view in (weight[:40], weight.view(24, 128), weight.view(64, 48).t()):
        assert not isinstance(products.with_weight(view, None), PackedProduct)


MIXED = {"token_embd.weight": Q8_0, "output.weight": Q8_0, "norm.weight": gguf.GGMLQuantizationType.F32, "weight": Q4_1}
"""As quantising programs do it; the first end that fits counts."""


def converted(folder: Path, quantisation: dict[str, gguf.GGMLQuantizationType], *, dtype: str = "bfloat16") -> Path:
    folder.mkdir(exist_ok=True)
    file = tiny_gguf.write(folder / "tiny.gguf", quantisation=quantisation)
    return converted_folder(file, cache_dir=folder, dtype=dtype, progress=lambda text, share: None)


def count_packed(loaded: LoadedModel) -> int:
    return sum(isinstance(getattr(module, "product", None), PackedProduct) for module in loaded.module.modules())


def assert_same_logits(folder: Path, kernels: Path, *, num_packed: int) -> None:
    operators: Operators = native(kernels)
    assert operators.kernels is not None
    if operators.kernels.packed_linear is None:
        pytest.skip("this CPU does not have AVX-512 with bfloat16")
    packed, expanded = (
        load_model(folder, dtype="bfloat16", operators=each) for each in (operators, replace(operators, kernels=None))
    )
    assert (count_packed(packed), count_packed(expanded)) == (num_packed, 0)
    assert packed.numerics_class == expanded.numerics_class
    assert all(torch.equal(*each) for each in zip(logits_of(packed), logits_of(expanded), strict=True))


def logits_of(loaded: LoadedModel) -> list[torch.Tensor]:
    """Return all logits of prompts that are prefilled in pieces and decoded, one after the other joining in."""
    driver = Driver(bind(loaded))
    sequences = [driver.sequence([5 + index, 6, 7, 8] * (9 - index), 20) for index in range(9)]
    for active in range(1, 21):
        driver.step([sequence for sequence in sequences[:active] if not sequence.is_done], 16)
    return [torch.stack(sequence.logits) for sequence in sequences]
