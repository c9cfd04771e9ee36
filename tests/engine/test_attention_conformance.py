"""Every attention backend gives the answer of dense attention; those of the CPU give it bitwise, row by row."""

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.engine.attention import cuda
from services.engine.attention.backend import AttentionBackend
from services.engine.attention.gather import GatherAttention
from services.engine.attention.native import NativeAttention
from services.engine.attention.reference import ReferenceAttention
from services.engine.kernels import build
from services.engine.kernels.library import Kernels
from services.engine.products.tiled import TiledProducts
from services.engine.selection import default_operators
from services.errors import ModelRefused
from tests.engine.attention_cases import CASES, SEQUENCES, Case, Pool, Problem, Shape, prefill_prefixes, run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
MARCHES = ("native", "x86-64-v3", "x86-64") if platform.machine() == "x86_64" else ("native",)
EXACT = [f"native {march}" for march in MARCHES] + ["reference"]
CASE_NAMES = [case.name for case in CASES]

Make = Callable[[str], AttentionBackend]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def libraries(kernels: Path) -> dict[str, Path]:
    compiler = build.find_compiler()
    assert compiler is not None, "the tests need a C++ compiler"
    return {march: build.build(kernels, compiler, march=march) for march in MARCHES}


@pytest.fixture
def make(libraries: dict[str, Path], device_name: str) -> Make:
    def make_backend(name: str) -> AttentionBackend:
        if device_name == "cuda":
            return GatherAttention() if name == "gather" else cuda.default_backend(torch.device("cuda"), torch.bfloat16)
        if name == "gather":
            return GatherAttention()
        if name == "reference":
            return ReferenceAttention()
        return NativeAttention(Kernels(libraries[name.removeprefix("native ")]))

    return make_backend


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    on_gpu = metafunc.config.getoption("--device") == "cuda"
    if "backend_name" in metafunc.fixturenames:
        metafunc.parametrize("backend_name", ["paged", "gather"] if on_gpu else [*EXACT, "gather"])
    if "exact_name" in metafunc.fixturenames:
        metafunc.parametrize("exact_name", [] if on_gpu else EXACT)


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_a_mixed_batch_attends_as_dense_attention_does(
    backend_name: str, case: Case, dtype_name: str, make: Make, device_name: str
) -> None:
    dtype, backend, device = DTYPES[dtype_name], make(backend_name), torch.device(device_name)
    if device_name == "cuda" and backend_name == "paged" and dtype is torch.float32:
        backend = cuda.default_backend(device, dtype)
    problem = Problem.random(case, [start + count for start, count in SEQUENCES], dtype, device)
    pool = Pool(problem, backend.block_size)
    prefill_prefixes(backend, problem, pool, [start for start, _ in SEQUENCES])

    outputs = run(backend, problem, pool, [(index, start, count) for index, (start, count) in enumerate(SEQUENCES)])

    for index, (start, _) in enumerate(SEQUENCES):
        expected = problem.dense(index)[start:]
        torch.testing.assert_close(outputs[index].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_a_row_is_bitwise_the_same_whatever_shares_its_batch(
    exact_name: str, case: Case, dtype_name: str, make: Make
) -> None:
    backend, length = make(exact_name), 150
    problem = Problem.random(case, [length, 40], DTYPES[dtype_name], torch.device("cpu"))

    def in_pieces(cuts: list[int], *, neighbour: bool, seed: int) -> torch.Tensor:
        pool, outputs, start = Pool(problem, backend.block_size, seed=seed), [], 0
        for end in cuts:
            others = [(1, 0, 40)] if neighbour else []
            outputs.append(run(backend, problem, pool, [*others, (0, start, end - start)])[-1])
            start = end
        return torch.cat(outputs)

    whole = in_pieces([length], neighbour=False, seed=1)
    assert torch.equal(in_pieces([16, 64, 112, length], neighbour=True, seed=2), whole)
    assert torch.equal(in_pieces([48, 49, 50, 127, 128, length], neighbour=False, seed=3), whole)
    assert torch.equal(in_pieces([*range(1, length + 1)], neighbour=False, seed=4)[-40:], whole[-40:])


@pytest.mark.parametrize("dtype_name", DTYPES)
def test_the_number_of_threads_changes_no_bit(libraries: dict[str, Path], dtype_name: str) -> None:
    problem = Problem.random(CASES[0], [200, 90], DTYPES[dtype_name], torch.device("cpu"))
    results = [
        run(
            NativeAttention(Kernels(libraries["native"], num_threads=threads)),
            problem,
            Pool(problem, 16),
            [(0, 0, 200), (1, 0, 90)],
        )
        for threads in (1, 2, 5)
    ]
    assert all(torch.equal(torch.cat(result), torch.cat(results[0])) for result in results)


def test_many_heads_over_one_latent_are_split_into_tiles(exact_name: str, make: Make) -> None:
    case = Case("wide latent", Shape(96, 1, 144, 128, latent=True))
    backend = make(exact_name)
    problem = Problem.random(case, [70], torch.float32, torch.device("cpu"))
    (output,) = run(backend, problem, Pool(problem, backend.block_size), [(0, 0, 70)])
    torch.testing.assert_close(output.double(), problem.dense(0), atol=2e-5, rtol=2e-5)


def test_dropping_an_option_changes_the_answer(exact_name: str, make: Make) -> None:
    backend, plain = make(exact_name), CASES[0]
    for case in (Case("w", window=24), Case("c", softcap=5.0), Case("s", sinks=True), Case("k", chunk=32)):
        problem = Problem.random(plain, [100], torch.float32, torch.device("cpu"))
        (without,) = run(backend, problem, Pool(problem, backend.block_size), [(0, 0, 100)])
        problem.case = case
        (with_option,) = run(backend, problem, Pool(problem, backend.block_size), [(0, 0, 100)])
        assert (with_option - without).abs().max() > 0.05


def test_the_kernels_are_compiled_once_per_host(tmp_path: Path) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    first = build.build(tmp_path, compiler)
    stamp = first.stat().st_mtime_ns
    assert build.build(tmp_path, compiler) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".lock", ".so"]


def test_a_host_without_a_compiler_gets_plain_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    operators = default_operators(torch.device("cpu"), torch.bfloat16, cache_folder=tmp_path, num_threads=1)
    assert operators.attention.kernel_set == "reference"
    assert isinstance(operators.products, TiledProducts)


def test_a_device_without_a_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="no attention backend for the device meta"):
        default_operators(torch.device("meta"), torch.bfloat16, cache_folder=tmp_path, num_threads=1)
