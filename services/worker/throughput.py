"""How fast this worker computes prompts, from the steps it ran."""

from services.engine.output import StepStats

_WEIGHT = 0.2
_MIN_PROMPT_TOKENS = 16


class Throughput:
    """Exponentially weighted prompt tokens per second over steps that were mostly prompt."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0

    def observe(self, stats: StepStats, duration_s: float) -> None:
        """Account for one step."""
        if stats.num_prompt_tokens < max(_MIN_PROMPT_TOKENS, stats.num_tokens // 2) or duration_s <= 0:
            return
        rate = stats.num_prompt_tokens / duration_s
        previous = self.prefill_tokens_per_s or rate
        self.prefill_tokens_per_s = previous + _WEIGHT * (rate - previous)
