"""Decides what each step computes: which requests advance, by how many tokens, into which blocks.

    add ─────────> waiting <── preempted, or no peer ──┐
                      │                                │
                      └──> catching up ──> generating ─┴─> over
                                               ↑
    reserve ─────> reserved ───── start ───────┘

A request has no phases: its computed tokens catch up with its tokens, which grow by one whenever they
have. What runs holds blocks for all its tokens; what waits holds none and finds again what stayed cached.
"""

from collections.abc import Sequence
from itertools import islice

from services.engine.blocks import BlockPool, Reason
from services.engine.exports import Exports
from services.engine.limits import SchedulerConfig
from services.engine.output import (
    Admitted,
    Choice,
    EngineLoad,
    FinalBlocks,
    HandedOver,
    Ledger,
    Reservation,
    SampledToken,
    StepOutput,
    TokenOutput,
)
from services.engine.parking import Parking
from services.engine.prefix_cache import CacheChanges
from services.engine.queues import Queues
from services.engine.request import AttemptKey, FinishReason, NewRequest, Outcome, Request, Status
from services.engine.reservations import Reservations
from services.engine.schedule import Schedule, ScheduledSequence
from services.engine.speculation import Speculation
from services.engine.step import StepPlan, StepReport
from services.engine.tables import BlockTables, use_of
from services.errors import InternalError, InvalidRequest, NotFound, Overloaded, PoolExhausted, TandemError
from services.kv.hashes import BlockHash

__all__ = ["Scheduler", "SchedulerConfig"]


class Scheduler:
    """Holds all requests and the block pool of one engine; plain Python, no tensors, no clock."""

    def __init__(self, config: SchedulerConfig, parking: Parking | None = None) -> None:
        self._config = config
        self._pool = BlockPool(config.num_blocks, parking)
        self._tables = BlockTables(self._pool, config.block_size)
        self._exports = Exports(self._pool, self._tables)
        self._reservations = Reservations(self._pool, self._tables, int(config.num_blocks * config.max_reserved_share))
        self._speculation = Speculation(config.num_speculative_tokens, self._pool, self._tables)
        self._queues = Queues()
        self._report = StepReport()
        self._grown: list[Request] = []  # generating ones whose last token may lack a block

    # -- commands, between two steps ------------------------------------------------------------

    def add(self, spec: NewRequest) -> Admitted:
        """Queue a request that this engine computes itself.

        Raises:
            ContextLengthExceeded: prompt + max_tokens exceed the context or the pool.
            InvalidRequest: empty prompt, nothing left to generate, or the id is in use.
            Overloaded: the queue is full.
        """
        request = self._accept(spec)
        if len(self._queues.waiting) >= self._config.max_waiting:
            raise Overloaded(f"{len(self._queues.waiting)} requests are waiting already.")
        prefix = self._tables.find_prefix(request)
        self._queues.wait(request)
        cached = self._exports.lease_cached(request, prefix) if spec.export else None
        return Admitted(len(prefix) * self._config.block_size, cached)

    def reserve(self, spec: NewRequest, attempt: AttemptKey) -> Reservation:
        """Reserve blocks for the whole prompt (and resumed output) of a request that a peer computes.

        Prefix blocks found here are pinned and not wanted from the peer. Never takes the growth headroom
        of running requests, nor what the first waiting request needs, and never more than
        ``max_reserved_share`` of the pool, unless it is the only reservation.

        Raises:
            PoolExhausted: not enough blocks now.
            Overloaded: ``max_running`` requests hold blocks. Others as ``add``.
        """
        request = self._accept(spec)
        if spec.export:
            raise InvalidRequest("What a peer computes cannot be exported.", param="export")
        waiting = self._queues.first_waiting
        if self._queues.num_active + (waiting is not None) >= self._config.max_active:
            raise Overloaded(f"{self._queues.num_active} requests are running already.")
        leaving = self._queues.num_running + (self._tables.num_blocks(waiting.num_tokens) if waiting else 0)
        reservation = self._reservations.open(request, attempt, leaving=leaving)
        self._queues.reserve(request)
        return reservation

    def start(self, request_id: str, first: SampledToken) -> FinishReason | None:
        """All wanted blocks arrived and were verified: the request runs with ``first`` as its next token.

        Returns a reason if the sequence ends with ``first``; then its blocks are given back.

        Raises:
            NotFound: the request is not reserved.
        """
        request = self._reserved(request_id)
        self._reservations.complete(request)
        request.num_prefill_tokens = request.num_tokens
        request.token_ids.append(first.token_id)
        if request.finish_reason is None:
            self._go_on(request)
        else:
            self._end(request)
        return request.finish_reason

    def reattempt(self, request_id: str, attempt: AttemptKey, *, num_arrived: int, outcome: Outcome) -> Reservation:
        """Leave the current attempt and reserve for another.

        The first ``num_arrived`` wanted blocks arrived, were verified and are kept; the others are freed or
        quarantined under the old attempt, as ``outcome`` says, and replaced by fresh ones.

        Raises:
            PoolExhausted: no fresh blocks; the request is gone and its kept blocks are given back.
            NotFound: the request is not reserved.
            InvalidRequest: ``attempt`` is not new, or ``num_arrived`` is out of range; nothing has changed.
        """
        request = self._reserved(request_id)
        leaving = self._queues.num_running
        try:
            return self._reservations.reopen(
                request, attempt, num_arrived=num_arrived, outcome=outcome, leaving=leaving
            )
        except PoolExhausted:
            self._end(request)
            raise

    def run_locally(self, request_id: str, *, num_arrived: int, outcome: Outcome) -> None:
        """Leave the current attempt; this engine computes what is missing, before all waiting requests.

        Whole blocks that arrived are cached and found again when the request is scheduled, so that it needs
        no room now. At least the last token is computed here, into a block of its own.

        Raises:
            NotFound, InvalidRequest: as ``reattempt``.
        """
        request = self._reserved(request_id)
        self._reservations.leave(request, num_arrived=num_arrived, outcome=outcome)
        self._tables.release(request)
        self._queues.wait(request, first=True)

    def cancel(self, request_id: str, *, num_arrived: int = 0, outcome: Outcome = Outcome.UNKNOWN) -> None:
        """End a request in any state and give its blocks back; unknown or finished ids are ignored.

        For a reserved request the arguments are as for ``reattempt``; leased blocks stay leased.
        """
        request = self._queues.get(request_id)
        if request is None:
            return
        if request.status is Status.RESERVED:
            self._reservations.leave(request, num_arrived=num_arrived, outcome=outcome)
        self._end(request)

    def settle(self, attempt: AttemptKey) -> None:
        """No write of ``attempt`` can land any more: its quarantined blocks are free. Unknown attempts are ignored."""
        self._reservations.settle(attempt)

    def lease(self, request_id: str, names: Sequence[BlockHash], first_block: int) -> FinalBlocks | None:
        """Lease the longest run of blocks at the start of ``names`` that is here, for a peer that asks for them.

        Returns None if the first one is not here.
        """
        return self._exports.lease_named(request_id, names, first_block, leaving=self._queues.num_running)

    def hand_over(self, request_id: str, *, max_tokens: int) -> HandedOver | None:
        """End a request in mid-sequence and lease its whole blocks for whoever goes on with it.

        Returns None if there is nothing to go on with: the request is unknown or finished, a peer still writes
        its prompt, or it is exported; or if it has more than ``max_tokens`` tokens.
        """
        request = self._queues.get(request_id)
        if request is None or request.status is Status.RESERVED or request.spec.export:
            return None
        if request.num_tokens > max_tokens:
            return None
        handed_over = self._exports.lease_whole(request)
        self._end(request)
        return handed_over

    def release(self, hold: int) -> None:
        """End a lease named by a ``hold``; each is released exactly once.

        Raises:
            InternalError: it was not, or never given.
        """
        self._exports.release(hold)

    # -- one step ----------------------------------------------------------------------------------

    def next(self) -> Schedule:
        """Choose what the next step computes and give it blocks."""
        plan = StepPlan(self._config)
        self._make_room()
        if self._speculation.may_guess(num_rows=self._queues.num_running):
            self._speculation.plan(plan, self._queues.generating.values(), num_rows=self._queues.num_running)
        else:
            plan.generate(self._queues.generating.values(), self._queues.last_tokens.values())
        for request in self._queues.catching_up.values():
            plan.catch_up(request)
        self._admit(plan)
        return plan.schedule()

    def commit(self, schedule: Schedule, tokens: Sequence[Choice]) -> StepOutput:
        """Record what was computed; ``tokens`` has one entry per ``schedule.sampled``."""
        if len(tokens) != len(schedule.sampled):
            raise InternalError(f"{len(schedule.sampled)} tokens were to be sampled, {len(tokens)} were.")
        border = schedule.num_generating
        self._commit_last_tokens(schedule.requests[:border], schedule.sequences[:border], tokens[:border])
        chosen = iter(tokens[border:])
        for request, sequence in zip(schedule.requests[border:], schedule.sequences[border:], strict=True):
            self._commit(request, sequence, [*islice(chosen, sequence.num_sampled)])
        report, self._report = self._report, StepReport()
        return report.output(schedule)

    def _make_room(self) -> None:
        """Give each generating request a block for its last token, at the cost of those that arrived last."""
        grown, self._grown = self._grown, []
        for request in grown:
            while request.status is Status.RUNNING and self._tables.room(request) < 0:
                if self._pool.num_available:
                    self._tables.extend(request, use_of(request))
                else:
                    self._give_way(self._queues.newest)

    def _give_way(self, request: Request) -> None:
        """Preempt ``request``, or fail it if nobody would ever make room for it again."""
        if self._queues.num_active > 1 or self._pool.num_claimed(Reason.LEASED):
            self._tables.release(request)
            request.num_preemptions += 1
            self._queues.wait(request, first=True)
            self._report.num_preempted += 1
        else:
            self._fail(request, PoolExhausted("The KV pool of this worker has no block left for the next token."))

    def _admit(self, plan: StepPlan) -> None:
        """Let waiting requests run, first come, first served."""
        while (request := self._queues.first_waiting) is not None:
            prefix = self._prefix_if_admissible(request)
            if prefix is None or not plan.chunk_of(request.num_tokens - len(prefix) * self._config.block_size):
                return
            self._begin(request, prefix)
            plan.catch_up(request)

    def _prefix_if_admissible(self, request: Request) -> list[int] | None:
        """Return the cached blocks that ``request`` may start with, or None if it has to wait."""
        if self._queues.num_active >= self._config.max_active:
            return None
        prefix = self._tables.find_prefix(request)
        return prefix if self._tables.fits(request, prefix, leaving=self._queues.num_running) else None

    def _begin(self, request: Request, prefix: Sequence[int]) -> None:
        """Let ``request`` run behind the cached blocks ``prefix``."""
        self._tables.fill(request, prefix, use_of(request))
        request.num_computed_tokens = len(prefix) * self._config.block_size
        request.num_prefill_tokens = request.num_tokens
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
            self._report.num_cached_tokens += request.num_computed_tokens
        self._queues.run(request)

    def _commit(self, request: Request, sequence: ScheduledSequence, tokens: Sequence[Choice]) -> None:
        """Record that the KV of ``sequence`` is computed, as far as it was guessed right, and what follows."""
        right = self._speculation.confirmed(request, sequence, tokens)
        for guessed in right:
            request.token_ids.append(guessed.token_id)
            self._report.tokens.append(TokenOutput(request.request_id, guessed))
        self._report.guessed(sequence.num_guessed, len(right))
        self._advance(request, sequence.start, len(sequence.new_token_ids) - sequence.num_guessed + len(right))
        if tokens:
            self._append(request, tokens[len(right)])
            if request.status is Status.RUNNING:
                self._go_on(request)

    def _advance(self, request: Request, start: int, num_rows: int) -> None:
        """Record that the KV of ``num_rows`` tokens from ``start`` on is computed."""
        request.num_computed_tokens = start + num_rows
        self._tables.publish(request, start // self._config.block_size)
        if start < request.num_prefill_tokens:
            self._report.advanced(request, num_rows)
        if request.spec.export and (final := self._exports.lease_computed(request)) is not None:
            self._report.final_blocks.append(final)

    def _commit_last_tokens(
        self, requests: Sequence[Request], last_tokens: Sequence[ScheduledSequence], tokens: Sequence[Choice]
    ) -> None:
        """Record of each of ``requests`` that the KV of its last token is computed, and which token is its last now.

        Written out for all of them at once: what is done here is done for each token that this engine makes.
        """
        block_size, outputs = self._config.block_size, self._report.tokens
        for request, last, token in zip(requests, last_tokens, tokens, strict=True):
            request.num_computed_tokens = last.start = num_computed = last.start + 1
            if not num_computed % block_size:
                self._tables.publish(request, num_computed // block_size - 1)
                self._grown.append(request)
            if isinstance(token, TandemError):
                self._fail(request, token)
                continue
            token_ids, token_id, reason = request.token_ids, token.token_id, None
            token_ids.append(token_id)
            last.new_token_ids = (token_id,)
            if token_id in request.stop_token_ids or len(token_ids) >= request.max_num_tokens:
                reason = request.finish_reason
            outputs.append(TokenOutput(request.request_id, token, reason))
            if reason is not None:
                self._end(request)

    def _append(self, request: Request, token: Choice) -> None:
        """Record which token follows, and end the request if it is the last one."""
        if isinstance(token, TandemError):
            self._fail(request, token)
            return
        request.token_ids.append(token.token_id)
        reason = request.finish_reason
        self._report.tokens.append(TokenOutput(request.request_id, token, reason))
        if reason is not None:
            self._end(request)

    def _go_on(self, request: Request) -> None:
        """Let a request that got a token generate; an exported one is over with its first."""
        if request.spec.export:
            self._end(request)
        else:
            self._queues.generate(request)
            self._grown.append(request)

    # -- a request's beginning and end -------------------------------------------------------------

    def _accept(self, spec: NewRequest) -> Request:
        """Return a record of a request that could run here, were it alone."""
        if spec.request_id in self._queues:
            raise InvalidRequest(f"A request {spec.request_id} is in progress.", param="request_id")
        self._config.check(spec)
        request = Request.of(spec)
        self._tables.restore(request, leaving=self._queues.num_running)
        return request

    def _reserved(self, request_id: str) -> Request:
        request = self._queues.reserved.get(request_id)
        if request is None:
            raise NotFound(f"No request {request_id} is reserved here.")
        return request

    def _fail(self, request: Request, error: TandemError) -> None:
        self._end(request)
        self._report.failed(request, error)

    def _end(self, request: Request) -> None:
        self._tables.release(request)
        self._queues.remove(request)

    def take_cache_changes(self) -> CacheChanges:
        """Return what others are to be told of the prefix cache since the last call."""
        return self._pool.take_cache_changes()

    # -- views -------------------------------------------------------------------------------------

    @property
    def max_active(self) -> int:
        """Most requests that may hold blocks."""
        return self._config.max_active

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something. Reserved requests and those that lack blocks are no work."""
        if self._queues.num_running:
            return True
        request = self._queues.first_waiting
        return request is not None and self._prefix_if_admissible(request) is not None

    def load(self) -> EngineLoad:
        """Return how busy the engine is."""
        behind = (*self._queues.waiting.values(), *self._queues.catching_up.values())
        return EngineLoad(
            num_running=self._queues.num_running,
            num_waiting=len(self._queues.waiting),
            num_queued_tokens=sum(request.num_uncomputed_tokens for request in behind),
            num_available_blocks=self._pool.num_available,
            num_total_blocks=self._config.num_blocks,
            num_parked_blocks=self._pool.num_parked,
        )

    def ledger(self) -> Ledger:
        """Return each block once, under its strongest claim."""
        return self._pool.ledger()

    def audit(self) -> Ledger:
        """Return the same, counted anew from all claims, or raise InternalError; for idle time and tests."""
        return self._pool.audit()
