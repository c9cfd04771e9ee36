"""Decides what each step computes. (Contract; being written.)"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.engine.output import Admitted, EngineLoad, Ledger, Reservation, SampledToken, StepOutput
from services.engine.request import AttemptKey, FinishReason, NewRequest, Outcome
from services.engine.schedule import Schedule


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
    max_reserved_share: float = 0.3
    """Largest share of the pool that reservations may hold."""


class Scheduler:
    """Holds all requests and the block pool of one engine; plain Python, no tensors, no clock."""

    def __init__(self, config: SchedulerConfig) -> None:
        raise NotImplementedError

    # -- commands, between two steps ------------------------------------------------------------

    def add(self, spec: NewRequest) -> Admitted:
        """Queue a request that this engine computes itself.

        Raises:
            ContextLengthExceeded: prompt + max_tokens exceed the context or the pool.
            InvalidRequest: empty prompt, or the id is in use.
            Overloaded: the queue is full.
        """
        raise NotImplementedError

    def reserve(self, spec: NewRequest, attempt: AttemptKey) -> Reservation:
        """Reserve blocks for the whole prompt (and resumed output) of a request that a peer computes.

        Prefix blocks found here are pinned and not wanted from the peer. Never takes the growth headroom
        of running requests and never more than ``max_reserved_share`` of the pool.

        Raises:
            PoolExhausted: not enough blocks now. Others as ``add``.
        """
        raise NotImplementedError

    def start(self, request_id: str, first: SampledToken) -> FinishReason | None:
        """All wanted blocks arrived and were verified: the request runs with ``first`` as its next token.

        Returns a reason if the sequence ends with ``first``; then its blocks are given back.
        """
        raise NotImplementedError

    def reattempt(self, request_id: str, attempt: AttemptKey, *, num_arrived: int, outcome: Outcome) -> Reservation:
        """Leave the current attempt and reserve for another.

        The first ``num_arrived`` wanted blocks arrived, were verified and are kept; the others are freed or
        quarantined under the old attempt, as ``outcome`` says, and replaced by fresh ones.

        Raises:
            PoolExhausted: no fresh blocks; the request is gone and its kept blocks are given back.
        """
        raise NotImplementedError

    def run_locally(self, request_id: str, *, num_arrived: int, outcome: Outcome) -> None:
        """Leave the current attempt; this engine computes what is missing. As ``reattempt`` otherwise."""
        raise NotImplementedError

    def cancel(self, request_id: str, *, num_arrived: int = 0, outcome: Outcome = Outcome.UNKNOWN) -> None:
        """End a request in any state and give its blocks back; unknown or finished ids are ignored.

        For a reserved request the arguments are as for ``reattempt``; leased blocks stay leased.
        """
        raise NotImplementedError

    def settle(self, attempt: AttemptKey) -> None:
        """No write of ``attempt`` can land any more: its quarantined blocks are free. Unknown attempts are ignored."""
        raise NotImplementedError

    def release(self, hold: int) -> None:
        """End a lease named by ``FinalBlocks.hold``; a hold is released exactly once."""
        raise NotImplementedError

    # -- one step ----------------------------------------------------------------------------------

    def next(self) -> Schedule:
        """Choose what the next step computes and give it blocks."""
        raise NotImplementedError

    def commit(self, schedule: Schedule, tokens: Sequence[SampledToken]) -> StepOutput:
        """Record what was computed; ``tokens`` has one entry per ``schedule.sampled``."""
        raise NotImplementedError

    # -- views -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""
        raise NotImplementedError

    def load(self) -> EngineLoad:
        """Return how busy the engine is."""
        raise NotImplementedError

    def ledger(self) -> Ledger:
        """Return each block once, under its strongest claim."""
        raise NotImplementedError
