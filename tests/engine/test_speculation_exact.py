"""A real model: the tokens with guesses are those without, greedy and drawn, while guesses do come true."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from services.engine.engine import Engine
from services.engine.limits import SchedulerConfig
from services.engine.output import StepStats
from services.engine.request import NewRequest
from services.engine.sampler import BatchSampler
from services.engine.scheduler import Scheduler
from services.kv.hashes import cache_seed
from services.kv.sampling import SamplingParams
from tests.engine.driving import bind, load

TEXT = "The second violin measured seventeen small clocks. The river sells a map without names. "
NUM_BLOCKS = 64
GREEDY = SamplingParams(seed=1, max_tokens=60, temperature=0.0, logprobs=2)
SEEDED = SamplingParams(seed=26, max_tokens=60, temperature=0.4, top_p=0.9, presence_penalty=0.1)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_tokens_are_the_same(
    params: SamplingParams, dtype: str, smollm2: Callable[[str], Path], kernels: Path
) -> None:
    torch.set_num_threads(1)
    folder = smollm2(dtype)
    prompt = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT * 4).ids
    loaded = load(folder, kernels, dtype)

    def answers(num_guesses: int) -> tuple[dict[str, list[object]], list[StepStats]]:
        limits = SchedulerConfig(
            num_blocks=NUM_BLOCKS, block_size=16, context_length=512, num_speculative_tokens=num_guesses
        )
        engine = Engine(bind(loaded, num_blocks=NUM_BLOCKS), BatchSampler(), Scheduler(limits))
        for name, length in (("long", len(prompt)), ("short", 45)):
            engine.scheduler.add(NewRequest(name, tuple(prompt[:length]), params, cache_seed("layout", name)))
        tokens: dict[str, list[object]] = {"long": [], "short": []}
        stats = []
        while engine.scheduler.has_work:
            output = engine.step()
            stats.append(output.stats)
            for token in output.tokens:
                tokens[token.request_id].append(token.token)
        return tokens, stats

    plain, _ = answers(0)
    guessed, steps = answers(8)
    assert guessed == plain
    num_right = sum(stats.num_guessed_right for stats in steps)
    assert num_right > 10, num_right
