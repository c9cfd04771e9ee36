"""The limits of one engine, and which requests can never fit into them."""

from dataclasses import dataclass

from services.engine.request import NewRequest
from services.errors import ConfigurationError, ContextLengthExceeded, InvalidRequest


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one engine. Tokens are rows of a forward pass."""

    num_blocks: int
    block_size: int
    context_length: int
    """Most tokens of one sequence, prompt and output."""
    max_step_tokens: int = 512
    """Most rows of one step: the prefill chunk size when nothing else runs."""
    max_mixed_prefill_tokens: int = 64
    """Most prompt rows of a step in which other requests generate, so that their inter-token latency stays flat."""
    max_running: int = 64
    """Most requests that hold blocks and take part in steps."""
    max_waiting: int = 256
    """Longest queue; ``add`` refuses beyond it."""
    num_speculative_tokens: int = 0
    """Most tokens guessed behind the last one of a sequence."""
    max_reserved_share: float = 0.3
    """Largest share of the pool that reservations may hold."""

    def __post_init__(self) -> None:
        if min(self.num_blocks, self.block_size, self.context_length, self.max_running) < 1:
            raise ConfigurationError("num_blocks, block_size, context_length and max_running must be at least 1.")
        if min(self.max_step_tokens, self.max_mixed_prefill_tokens) < self.block_size:
            raise ConfigurationError(
                f"max_step_tokens and max_mixed_prefill_tokens must be at least {self.block_size}, "
                "since prompts are computed in whole blocks."
            )

    @property
    def max_active(self) -> int:
        """Most requests that may hold blocks: while all others generate, one block of a prompt still fits a step."""
        return min(self.max_running, self.max_step_tokens - self.block_size + 1)

    def check(self, spec: NewRequest) -> None:
        """Refuse a request that could not run here even if it were alone.

        Raises:
            ContextLengthExceeded: prompt + max_tokens exceed the context or the pool. An exported request ends
                with its first token, so that only what is known of it must fit into the pool.
            InvalidRequest: empty prompt, or nothing left to generate.
        """
        num_prompt, num_completion = len(spec.prompt_token_ids), spec.params.max_tokens
        if not num_prompt:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        if len(spec.resumed_output_token_ids) >= num_completion:
            raise InvalidRequest("The resumed output has max_tokens tokens already.", param="max_tokens")
        num_pool_tokens = self.num_blocks * self.block_size
        num_held = num_prompt + (len(spec.resumed_output_token_ids) if spec.export else num_completion)
        if num_prompt + num_completion > self.context_length or num_held > num_pool_tokens:
            refusal = (
                f"This model's maximum context length is {self.context_length} tokens. However, you requested "
                f"{num_prompt + num_completion} tokens ({num_prompt} in the messages, {num_completion} in the "
                "completion)."
            )
            if num_pool_tokens < self.context_length:
                refusal += f" The KV pool of this worker holds {num_pool_tokens} tokens."
            raise ContextLengthExceeded(refusal, param="messages")
