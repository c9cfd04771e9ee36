"""Logits and KV of a sequence are bitwise the same whatever it is computed with, and in whatever pieces."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from services.engine import probe
from services.engine.kv_cache import KVCache
from services.engine.loading import LoadedModel, load_model
from services.engine.operators import Operators
from services.engine.schedule import ScheduledSequence
from tests.engine.driving import Driver, bind, load
from tests.engine.random_models import VOCAB_SIZE, config_of, save_random

MODELS = ("llama", "qwen2", "gpt2", "gemma2", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss")
LENGTH = 530
CONTEXT = {"max_position_embeddings": 640}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tokens(length: int, seed: int, vocab_size: int = VOCAB_SIZE) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (length,), generator=generator).tolist()


def logits_of(
    loaded: LoadedModel, prompt: list[int], *, chunk: int, neighbours: int = 0, seed: int = 0, num_tokens: int = 12
) -> torch.Tensor:
    """Return the logits of ``num_tokens`` greedy steps, ``[num_tokens, vocab_size]``."""
    driver = Driver(bind(loaded, num_blocks=192), num_blocks=192, seed=seed)
    ours = driver.sequence(prompt, num_tokens)
    others = [driver.sequence(tokens(20 + 31 * index, index + 50), 100) for index in range(neighbours)]
    while not ours.is_done:
        driver.step([*others[:1], ours, *others[1:]], chunk)
    return torch.stack(ours.logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model_type", MODELS)
def test_logits_do_not_depend_on_neighbours_or_pieces(
    model_type: str, dtype: str, tmp_path: Path, kernels: Path
) -> None:
    loaded = load(save_random(tmp_path, config_of(model_type, **CONTEXT)), kernels, dtype)
    prompt = tokens(LENGTH, 9)
    whole = logits_of(loaded, prompt, chunk=1024)
    assert torch.equal(logits_of(loaded, prompt, chunk=512, seed=1), whole)
    assert torch.equal(logits_of(loaded, prompt, chunk=48, neighbours=3, seed=2), whole)
    assert torch.equal(logits_of(loaded, prompt, chunk=16, neighbours=1, seed=3), whole)
    short = prompt[:75]
    assert torch.equal(logits_of(loaded, short, chunk=1, seed=4), logits_of(loaded, short, chunk=1024, neighbours=5))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_fallback_in_plain_torch_is_invariant_too(dtype: str, tmp_path: Path) -> None:
    loaded = load_model(save_random(tmp_path, config_of("mistral")), dtype=dtype, operators=Operators.plain())
    prompt = tokens(75, 9)
    whole = logits_of(loaded, prompt, chunk=512)
    assert torch.equal(logits_of(loaded, prompt, chunk=16, neighbours=2, seed=1), whole)
    assert torch.equal(logits_of(loaded, prompt, chunk=1, seed=2), whole)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model_type", ["qwen2_moe", "gpt2", "deepseek_v3"])
def test_the_number_of_threads_changes_no_bit(model_type: str, dtype: str, tmp_path: Path, kernels: Path) -> None:
    config = config_of(model_type, intermediate_size=368, n_inner=368, shared_expert_intermediate_size=48)
    loaded = load(save_random(tmp_path, config), kernels, dtype)
    prompt = tokens(250, 9)
    alone = logits_of(loaded, prompt, chunk=48, neighbours=2)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert torch.equal(logits_of(loaded, prompt, chunk=300), alone)


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3"])
def test_the_cache_holds_the_same_bytes(model_type: str, tmp_path: Path, kernels: Path) -> None:
    loaded = load(save_random(tmp_path, config_of(model_type)), kernels, "bfloat16")
    prompt, blocks = tokens(80, 9), [3, 0, 4, 1, 2]

    def cache_after(cuts: list[int], *others: ScheduledSequence) -> list[bytes]:
        layout_model = bind(loaded)
        cache: KVCache = layout_model.cache
        start = 0
        for end in cuts:
            layout_model.forward([*others, ScheduledSequence(prompt[start:end], start, blocks, False)])
            start = end
        return [bytes(cache.block_view(block)) for block in blocks]

    neighbour = ScheduledSequence(prompt[:17], 0, [9, 8], True)
    whole = cache_after([80])
    assert cache_after([16, 64, 80], neighbour) == whole
    assert cache_after([16, *range(17, 81)]) == whole


def test_the_check_at_start_passes_and_sees_a_difference(tmp_path: Path, kernels: Path) -> None:
    loaded = load(save_random(tmp_path, config_of("llama")), kernels, "bfloat16")
    model = bind(loaded)
    assert probe.check_row_invariance(model, VOCAB_SIZE, 16).is_exact

    class BatchDependent:
        def forward(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
            return model.forward(sequences) + 1e-6 * len(sequences)

        def zero_tail(self, block_id: int, num_tokens: int) -> None:
            model.zero_tail(block_id, num_tokens)

    result = probe.check_row_invariance(BatchDependent(), VOCAB_SIZE, 16)
    assert result.differing == ("with a neighbour", "in pieces with a neighbour")
    assert 0 < result.max_difference < 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_default_model_is_invariant(dtype: str, smollm2: Callable[[str], Path], kernels: Path) -> None:
    loaded = load(smollm2(dtype), kernels, dtype)
    prompt = tokens(150, 9, loaded.vocab_size)
    run = partial(logits_of, loaded, prompt, num_tokens=4)
    whole = run(chunk=512)
    assert torch.equal(run(chunk=48, neighbours=2, seed=1), whole)
    assert torch.equal(run(chunk=16, seed=2), whole)
    torch.set_num_threads(2)
    assert torch.equal(run(chunk=512, neighbours=1, seed=3), whole)
