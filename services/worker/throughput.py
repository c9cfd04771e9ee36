"""How fast this worker is, from the steps it ran."""

from services.engine.output import StepStats

_WEIGHT = 0.2
_MIN_PROMPT_TOKENS = 16


class Throughput:
    """Exponentially weighted averages; 0 while unknown."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        """Prompt tokens per second in steps that were mostly prompt."""
        self.generating_step_s = 0.0
        """Seconds of a step in which sequences generate."""

    def observe(self, stats: StepStats, duration_s: float) -> None:
        """Account for one step."""
        if duration_s <= 0:
            return
        if stats.num_tokens > stats.num_prompt_tokens:
            self.generating_step_s = _averaged(self.generating_step_s, duration_s)
        if stats.num_prompt_tokens >= max(_MIN_PROMPT_TOKENS, stats.num_tokens // 2):
            self.prefill_tokens_per_s = _averaged(self.prefill_tokens_per_s, stats.num_prompt_tokens / duration_s)


def _averaged(previous: float, value: float) -> float:
    return previous + _WEIGHT * (value - previous) if previous else value
