"""What one engine step, or one command, tells the worker."""

from dataclasses import dataclass

from services.engine.request import FinishReason
from services.errors import TandemError
from services.kv.hashes import BlockHash


@dataclass(frozen=True)
class TokenLogprob:
    """A token id with its natural log probability under the unmodified distribution."""

    token_id: int
    logprob: float


@dataclass(slots=True)  # not frozen: one is made for each token, at four times the cost
class SampledToken:
    """One chosen token; ``logprob`` and ``top`` are set when the request asked for log probabilities."""

    token_id: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


Choice = SampledToken | TandemError
"""What a row that was sampled from gave: its next token, or why there is none."""


@dataclass(slots=True)  # as above
class TokenOutput:
    """A request's next token; with ``finish_reason`` the request is over and its blocks are given back."""

    request_id: str
    token: SampledToken
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class FinalBlocks:
    """Blocks of an exported request that no step will write again, leased under ``hold`` until released."""

    request_id: str
    hold: int
    first_block: int
    """Index, within the sequence, of the first of them."""
    block_ids: tuple[int, ...]
    token_digests: tuple[BlockHash, ...]
    payload_digests: tuple[int, ...] = ()
    """Set by the worker, between the step that made the blocks final and the next one."""


@dataclass(frozen=True)
class HandedOver:
    """A request that ended here in mid-sequence; another worker goes on with it.

    Its whole computed blocks are leased under ``hold`` until released; without any there is no hold.
    """

    request_id: str
    hold: int | None
    num_blocks: int
    num_tokens: int
    """Prompt and output so far: what has to find room elsewhere."""


@dataclass(frozen=True)
class ChunkComputed:
    """A request's prompt advanced to ``num_computed_tokens``."""

    request_id: str
    num_computed_tokens: int
    num_cached_tokens: int = 0
    """Those of them that the prefix cache had when the request first got blocks."""
    step_began_s: float = 0.0
    """Stamped by the worker; the engine knows no clock."""


@dataclass(frozen=True)
class RequestFailed:
    """The engine gave up on a request; its blocks are given back."""

    request_id: str
    error: TandemError


@dataclass(frozen=True)
class StepStats:
    """What one step did, for metrics and tests."""

    num_requests: int = 0
    num_tokens: int = 0
    """Rows of the forward pass that belong to requests."""
    num_prompt_tokens: int = 0
    """Those of them that advanced a prompt."""
    num_preempted: int = 0
    num_cached_tokens: int = 0
    """Tokens found in the prefix cache by requests that were scheduled for the first time."""
    num_guessed: int = 0
    """Rows that computed guesses."""
    num_guessed_right: int = 0
    """Those of them that came true: tokens that needed no step of their own."""


@dataclass(frozen=True)
class StepOutput:
    """Everything that one step produced, in order of happening within each list."""

    final_blocks: tuple[FinalBlocks, ...] = ()
    chunks: tuple[ChunkComputed, ...] = ()
    tokens: tuple[TokenOutput, ...] = ()
    failures: tuple[RequestFailed, ...] = ()
    stats: StepStats = StepStats()

    @classmethod
    def idle(cls) -> "StepOutput":
        """Return the output of a step that had nothing to do."""
        return cls()


@dataclass(frozen=True)
class Admitted:
    """A request is waiting; with ``cached`` its first blocks, already final (exported requests only)."""

    num_cached_tokens: int
    cached: FinalBlocks | None = None


@dataclass(frozen=True)
class Reservation:
    """Blocks for a whole prompt, reserved before any compute.

    Blocks before ``first_wanted`` hold valid KV already (prefix hit, or kept from an earlier attempt);
    a peer may write ``block_table[first_wanted:]`` under the attempt's epoch.
    """

    request_id: str
    block_table: tuple[int, ...]
    first_wanted: int
    num_cached_tokens: int
    token_digests: tuple[BlockHash, ...]
    """Expected digest of every block of ``block_table``, the partial last one included."""


@dataclass(frozen=True)
class Ledger:
    """Each block of the pool once, under its strongest claim."""

    quarantined: int
    reserved: int
    leased: int
    used: int
    cached: int
    free: int
    total: int

    def by_claim(self) -> dict[str, int]:
        """Return the number of blocks under each claim, strongest first."""
        return {
            "quarantined": self.quarantined,
            "reserved": self.reserved,
            "leased": self.leased,
            "used": self.used,
            "cached": self.cached,
            "free": self.free,
        }

    @property
    def is_balanced(self) -> bool:
        """Whether the sum of all claims is the pool."""
        parts = self.by_claim().values()
        return min(parts) >= 0 and sum(parts) == self.total

    @property
    def is_idle(self) -> bool:
        """Whether nothing but the prefix cache holds a block."""
        return self.cached + self.free == self.total


@dataclass(frozen=True)
class EngineLoad:
    """How busy the engine is."""

    num_running: int
    """Requests that take part in steps."""
    num_waiting: int
    num_queued_tokens: int
    """Prompt tokens not computed yet."""
    num_available_blocks: int
    num_total_blocks: int
    num_parked_blocks: int = 0
    """In host memory, beside the pool."""
