"""One step in the making: first its plan, then the report of what came of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.engine.limits import SchedulerConfig
from services.engine.output import (
    ChunkComputed,
    FinalBlocks,
    RequestFailed,
    StepOutput,
    StepStats,
    TokenOutput,
)
from services.engine.request import Request
from services.engine.schedule import PartialTail, Schedule, ScheduledSequence
from services.errors import TandemError


class StepPlan:
    """Gives the rows of one forward pass to requests, within its limits."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._num_rows_left = config.max_step_tokens
        self._num_mixed_rows_left = config.max_mixed_prefill_tokens
        self._block_size = config.block_size
        self._is_mixed = False
        self._num_generating = 0
        self._requests: list[Request] = []
        self._sequences: list[ScheduledSequence] = []
        self._sampled: list[Request] = []
        self._partial_tails: list[PartialTail] = []

    def generate(self, requests: Iterable[Request], last_tokens: Iterable[ScheduledSequence]) -> None:
        """Let each of ``requests`` compute its last token and be sampled from; before all others."""
        self._requests += requests
        self._sampled += self._requests
        self._sequences += last_tokens
        self._num_generating = len(self._requests)
        self._num_rows_left -= self._num_generating
        self._is_mixed = bool(self._requests)

    def speculate(self, request: Request, guesses: Sequence[int]) -> None:
        """Let ``request`` compute its last token and ``guesses`` behind it, and be sampled from after each."""
        self._is_mixed = True
        self._num_rows_left -= 1 + len(guesses)
        start, table, token_ids = request.num_computed_tokens, request.block_table, [request.token_ids[-1], *guesses]
        self._requests.append(request)
        self._sequences.append(ScheduledSequence(token_ids, start, table, True, num_guessed=len(guesses)))
        self._sampled.append(request)
        self._sampled += [request.behind(guesses[: index + 1]) for index in range(len(guesses))]

    def chunk_of(self, num_uncomputed_tokens: int) -> int:
        """Return how many of a request's tokens this step can take: all, or whole blocks of them."""
        limit = min(self._num_rows_left, self._num_mixed_rows_left) if self._is_mixed else self._num_rows_left
        return num_uncomputed_tokens if num_uncomputed_tokens <= limit else limit - limit % self._block_size

    def catch_up(self, request: Request) -> None:
        """Let ``request`` compute as many of its tokens as this step can take."""
        start = request.num_computed_tokens
        num_rows = self.chunk_of(request.num_uncomputed_tokens)
        if num_rows == 0:
            return
        end = start + num_rows
        needs_logits = end == request.num_tokens
        self._num_rows_left -= num_rows
        self._num_mixed_rows_left -= num_rows
        table = request.block_table[: -(-end // self._block_size)]
        self._requests.append(request)
        self._sequences.append(ScheduledSequence(request.token_ids[start:end], start, table, needs_logits))
        if needs_logits:
            self._sampled.append(request)
            self._name_partial_tail(request)

    def schedule(self) -> Schedule:
        """Return the finished plan."""
        return Schedule(self._requests, self._sequences, self._sampled, self._num_generating, self._partial_tails)

    def _name_partial_tail(self, request: Request) -> None:
        num_tokens = request.num_tokens % self._block_size
        if request.spec.export and num_tokens:
            self._partial_tails.append(PartialTail(request.block_table[-1], num_tokens))


@dataclass
class StepReport:
    """What happened since the last step was committed."""

    final_blocks: list[FinalBlocks] = field(default_factory=list)
    chunks: list[ChunkComputed] = field(default_factory=list)
    tokens: list[TokenOutput] = field(default_factory=list)
    failures: list[RequestFailed] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_preempted: int = 0
    num_cached_tokens: int = 0
    num_guessed: int = 0
    num_guessed_right: int = 0

    def advanced(self, request: Request, num_rows: int) -> None:
        """Note that ``num_rows`` tokens of a prompt were computed."""
        chunk = ChunkComputed(request.request_id, request.num_computed_tokens, request.num_cached_tokens or 0)
        self.chunks.append(chunk)
        self.num_prompt_tokens += num_rows

    def guessed(self, num_guessed: int, num_right: int) -> None:
        """Note how many guesses were made for one request, and how many of them came true."""
        self.num_guessed += num_guessed
        self.num_guessed_right += num_right

    def failed(self, request: Request, error: TandemError) -> None:
        """Note that ``request`` was given up."""
        self.failures.append(RequestFailed(request.request_id, error))

    def output(self, schedule: Schedule) -> StepOutput:
        """Return the report on ``schedule`` as the worker gets it."""
        others = schedule.sequences[schedule.num_generating :]
        stats = StepStats(
            num_requests=len(schedule.sequences),
            num_tokens=schedule.num_generating + sum(len(sequence.new_token_ids) for sequence in others),
            num_prompt_tokens=self.num_prompt_tokens,
            num_preempted=self.num_preempted,
            num_cached_tokens=self.num_cached_tokens,
            num_guessed=self.num_guessed,
            num_guessed_right=self.num_guessed_right,
        )
        return StepOutput(tuple(self.final_blocks), tuple(self.chunks), tuple(self.tokens), tuple(self.failures), stats)
