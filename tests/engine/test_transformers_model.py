from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.engine.attention.batch import PackedBatch
from services.engine.kv_cache import KVCache
from services.engine.loading import LoadedModel, LoadProgress, load_model
from services.engine.schedule import ScheduledSequence
from services.engine.transformers_model import TransformersModel
from services.errors import ConfigurationError, InternalError, ModelRefused
from services.kv.layout import KVLayout
from tests.engine.driving import CPU, Driver, bind, load, native
from tests.engine.random_models import VOCAB_SIZE, config_of, reference_tokens, save_random


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("llama"), config_of("llama"))


@pytest.fixture(scope="module")
def loaded(folder: Path, kernels: Path) -> LoadedModel:
    return load(folder, kernels)


def batch_of(*sequences: ScheduledSequence, num_blocks: int = 9) -> PackedBatch:
    return PackedBatch.of(sequences, 16, num_blocks=num_blocks, device=CPU)


def test_rows_are_packed_behind_each_other_and_padded() -> None:
    sequences = [ScheduledSequence([5, 6], 15, [7, 2], True), ScheduledSequence([8, 9, 10], 0, [4], False)]
    batch = PackedBatch.of(sequences, 16, num_blocks=9, device=CPU, row_multiple=4)
    assert batch.token_ids.tolist() == [5, 6, 8, 9, 10, 0, 0, 0]
    assert batch.positions.tolist() == [15, 16, 0, 1, 2, 0, 0, 0]
    assert batch.slots.tolist() == [7 * 16 + 15, 2 * 16, 64, 65, 66]
    assert batch.query_starts.tolist() == [0, 2, 5]
    assert batch.context_lengths.tolist() == [17, 3]
    assert batch.block_tables.tolist() == [[7, 2], [4, 0]]
    assert batch.logit_rows.tolist() == [1]
    assert (batch.num_rows, batch.num_padded_rows) == (5, 8)


def test_a_table_that_is_too_short_or_leaves_the_pool_is_an_error() -> None:
    with pytest.raises(InternalError, match="1 blocks, needs 2"):
        batch_of(ScheduledSequence([1], 16, [3], True))
    with pytest.raises(InternalError, match="outside of the pool of 9"):
        batch_of(ScheduledSequence([1], 0, [9], True))
    with pytest.raises(InternalError, match="outside of the pool of 9"):
        batch_of(ScheduledSequence([1], 0, [-1], True))


def test_logits_are_float32_one_row_per_wanted_sequence_in_order(folder: Path, kernels: Path) -> None:
    model = bind(load(folder, kernels, "bfloat16"))
    wanted = [ScheduledSequence([3 + index], 0, [index], True) for index in range(5)]
    silent = ScheduledSequence([9, 9], 0, [8], False)
    together = model.forward([silent, *wanted, replace(silent, block_table=[9])])
    assert together.dtype == torch.float32
    assert together.shape == (5, VOCAB_SIZE)
    assert torch.equal(together, torch.cat([model.forward([one]) for one in wanted]))


def test_nothing_wanted_gives_no_rows(loaded: LoadedModel) -> None:
    assert bind(loaded).forward([ScheduledSequence([3, 4, 5], 0, [1], False)]).shape == (0, VOCAB_SIZE)


def test_a_step_writes_only_to_the_slots_of_its_tokens(loaded: LoadedModel) -> None:
    model = bind(loaded)
    model.forward([ScheduledSequence([3, 4, 5], 0, [6], True)])
    for plane in model.cache.planes:
        written = ~plane.isnan().all(dim=-1).all(dim=1)
        assert written.nonzero().tolist() == [[6, 0], [6, 1], [6, 2]]


def test_zero_tail_makes_a_partial_block_reproducible(loaded: LoadedModel) -> None:
    blocks = []
    for _ in range(2):
        model = bind(loaded)
        model.forward([ScheduledSequence([3, 4, 5], 0, [6], True)])
        model.zero_tail(6, 3)
        blocks.append(bytes(model.cache.block_view(6)))
    assert blocks[0] == blocks[1]
    assert any(blocks[0])


def test_blocks_copied_to_another_cache_continue_the_sequence(loaded: LoadedModel) -> None:
    prompt = list(range(3, 43))
    first, second = bind(loaded), bind(loaded)
    expected = first.forward([ScheduledSequence(prompt, 0, [5, 1, 2], True)])
    second.forward([ScheduledSequence([7], 0, [0], True)])
    for source, target in ((5, 8), (1, 3)):
        second.cache.block_view(target)[:] = first.cache.block_view(source)
    assert torch.equal(second.forward([ScheduledSequence(prompt[32:], 32, [8, 3, 4], True)]), expected)


def test_greedy_tokens_do_not_depend_on_the_chunk(folder: Path, loaded: LoadedModel) -> None:
    prompts = [list(range(3, 3 + length)) for length in (16, 32, 33, 1)]
    expected = reference_tokens(folder, prompts, 8)
    assert Driver(bind(loaded)).greedy(prompts, 8, chunk=16) == expected
    assert Driver(bind(loaded), seed=5).greedy(prompts, 8, chunk=512) == expected


def test_a_model_refuses_a_cache_of_another_layout(loaded: LoadedModel) -> None:
    layout = KVLayout("other", loaded.numerics_class, loaded.block_size, loaded.planes[:2])
    with pytest.raises(ConfigurationError, match="another layout"):
        TransformersModel(loaded, KVCache(layout, 4, CPU))


def test_what_a_loaded_model_says_of_itself(loaded: LoadedModel) -> None:
    assert [(plane.layer, plane.name) for plane in loaded.planes][:3] == [(0, "key"), (0, "value"), (1, "key")]
    assert (loaded.context_length, loaded.vocab_size, loaded.block_size) == (512, VOCAB_SIZE, 16)
    assert loaded.numerics_class.startswith("float32/dense/eager/native-")
    assert loaded.row_multiple == 2


def test_progress_ends_with_every_byte(folder: Path, kernels: Path) -> None:
    seen: list[LoadProgress] = []
    load_model(folder, dtype="bfloat16", operators=native(kernels), progress=seen.append)
    done = [progress.num_bytes for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes > 2 * 64 * VOCAB_SIZE


def test_a_context_beyond_the_models_own_is_refused(folder: Path, kernels: Path) -> None:
    with pytest.raises(ModelRefused, match="context is 512 tokens, 513 were asked for"):
        load_model(folder, dtype="float32", operators=native(kernels), context_length=513)
    assert load_model(folder, dtype="float32", operators=native(kernels), context_length=100).context_length == 100
