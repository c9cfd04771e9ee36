"""A scheduler step with many running requests and no model: choose, then commit one token each."""

from bench.timing import best_cpu_s
from services.engine.output import SampledToken, StepOutput
from services.engine.request import NewRequest
from services.engine.scheduler import Scheduler, SchedulerConfig
from services.kv.hashes import cache_seed
from services.kv.sampling import SamplingParams

BLOCK_SIZE = 16
PROMPT_TOKENS = 200
MAX_TOKENS = 4000
CONTEXT_LENGTH = PROMPT_TOKENS + BLOCK_SIZE + MAX_TOKENS


class Running:
    """A scheduler whose requests all generate."""

    def __init__(self, num_requests: int) -> None:
        blocks_each = -(-CONTEXT_LENGTH // BLOCK_SIZE)
        self._scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=num_requests * blocks_each,
                block_size=BLOCK_SIZE,
                context_length=CONTEXT_LENGTH,
                max_step_tokens=num_requests * (PROMPT_TOKENS + BLOCK_SIZE),
                max_running=num_requests,
                max_waiting=num_requests,
            )
        )
        params, seed = SamplingParams(seed=1, max_tokens=MAX_TOKENS), cache_seed("layout", "bench")
        for index in range(num_requests):
            num_tokens = PROMPT_TOKENS + index % BLOCK_SIZE  # each step, some come to the border of a block
            prompt = tuple(range(index, index + num_tokens))  # no two share a block
            self._scheduler.add(NewRequest(f"request-{index}", prompt, params, seed))
        self.step()

    def step(self) -> StepOutput:
        """Run one step; every request gets a token."""
        schedule = self._scheduler.next()
        output = self._scheduler.commit(schedule, [SampledToken(7)] * len(schedule.sampled))
        self._scheduler.load()
        self._scheduler.take_cache_changes()
        return output


def measure(num_requests: int = 1000, num_steps: int = 16, rounds: int = 10) -> float:
    """Return milliseconds of a step."""
    running = Running(num_requests)

    def steps() -> None:
        for _ in range(num_steps):
            running.step()

    return 1e3 * best_cpu_s(steps, rounds) / num_steps
