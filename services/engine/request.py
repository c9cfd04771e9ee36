"""One sequence inside the engine: what it is to become and how far it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from services.engine.grammar import Grammar
from services.engine.prompt_lookup import PromptLookup
from services.kv.hashes import BlockHash
from services.kv.sampling import SamplingParams


class Status(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    """Not scheduled yet, or preempted."""
    RESERVED = "reserved"
    """Holds blocks that a peer writes; known to the scheduler but not runnable."""
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"


class Outcome(Enum):
    """What is known about a peer's writes when a reservation is left."""

    NOTHING_POSTED = "nothing posted"
    """The peer's word that no write was ever posted: the blocks are free at once."""
    UNKNOWN = "unknown"
    """Writes may still land: the blocks are quarantined until ``Engine.settle``."""


@dataclass(frozen=True)
class AttemptKey:
    """Names one attempt to let a peer fill reserved blocks; no two attempts share an epoch."""

    request_id: str
    epoch: int

    def __str__(self) -> str:
        """The name of the attempt where both sides log it."""
        return f"{self.request_id}#{self.epoch:x}"


@dataclass(frozen=True)
class NewRequest:
    """What a worker hands to the engine."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    cache_seed: BlockHash
    resumed_output_token_ids: tuple[int, ...] = ()
    export: bool = False
    """Prefill role: name blocks as they become final, hold them until released, stop after one token."""
    grammar: Grammar | None = None
    """What the output satisfies; it stands behind the resumed output, and goes on with the request that runs."""


@dataclass(eq=False, slots=True)
class Request:
    """The engine's own record of a request. ``token_ids`` = prompt + output."""

    spec: NewRequest
    token_ids: list[int]
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    """Tokens whose KV is in ``block_table``; must catch up with ``num_tokens``."""
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)
    """Hashes of the whole blocks of ``token_ids``, extended as tokens appear."""
    num_exported_blocks: int = 0
    """Blocks, from the first on, that were named as final."""
    num_preemptions: int = 0
    arrival: int = 0
    """Place in the order of arrival at this engine."""
    num_prefill_tokens: int = 0
    """Tokens that were known when the request last began to run: steps up to here compute a prompt."""
    num_cached_tokens: int | None = None
    """Tokens found in the prefix cache when the request first got blocks; None before."""
    grammar: Grammar | None = None
    num_followed_tokens: int = 0
    """Output tokens that ``grammar`` has consumed."""
    lookup: PromptLookup | None = None
    """Guesses its next tokens, once it generates."""
    request_id: str = field(init=False)
    """The id given by the gateway."""
    num_prompt_tokens: int = field(init=False)
    """Tokens before the border from which penalties, limits and usage count."""
    max_num_tokens: int = field(init=False)
    """Prompt and output, once the output is as long as it may get."""
    stop_token_ids: frozenset[int] = field(init=False)
    """Tokens that may end the output."""

    def __post_init__(self) -> None:
        params = self.spec.params
        self.request_id = self.spec.request_id
        self.num_prompt_tokens = len(self.spec.prompt_token_ids)
        self.max_num_tokens = self.num_prompt_tokens + params.max_tokens
        self.stop_token_ids = params.stop_token_ids

    @classmethod
    def of(cls, spec: NewRequest) -> "Request":
        """Return a fresh record of ``spec``."""
        return cls(
            spec=spec,
            token_ids=[*spec.prompt_token_ids, *spec.resumed_output_token_ids],
            grammar=spec.grammar,
            num_followed_tokens=len(spec.resumed_output_token_ids),
        )

    def behind(self, guesses: Sequence[int]) -> "Request":
        """Return this request as the sampler sees it behind tokens that are only guessed."""
        return replace(self, token_ids=[*self.token_ids, *guesses])

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output so far, resumed tokens included."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """Output so far, resumed tokens included."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ends with its last output token, or None if it goes on."""
        if self.token_ids[-1] in self.stop_token_ids and self.num_output_tokens >= self.spec.params.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.token_ids) >= self.max_num_tokens else None

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that still need a forward pass before the next one can be sampled."""
        return self.num_tokens - self.num_computed_tokens
