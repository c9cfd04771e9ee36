"""Gets one prompt's KV into this worker's pool: from whoever has it, from a prefill worker, or computed here.

reserve -> fetch, if somebody has it -> little is missing: computed here (handover)
        -> local by choice
        -> attempt 1 -> arrived: start
                     -> failed: keep what arrived, attempt 2 ... -> computed here (fallback)
"""

import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from services.decode.policy import PrefillPolicy
from services.decode.prefill_attempt import PrefillAttempt
from services.decode.proof import Proof
from services.decode.reserving import Reserving
from services.decode.settings import DecodeSettings
from services.engine.output import Reservation, SampledToken
from services.engine.request import AttemptKey, FinishReason, NewRequest
from services.engine.scheduler import Scheduler
from services.errors import (
    Draining,
    IntegrityError,
    InternalError,
    NoPrefillWorker,
    Overloaded,
    PeerError,
    PoolExhausted,
    RequestError,
    TandemError,
    TokenDivergence,
    Unavailable,
)
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.telemetry.logs import get_logger
from services.telemetry.metrics import WorkerMetrics
from services.worker.arrivals import Arrivals
from services.worker.attempt import Leaving
from services.worker.node import Node
from services.worker.settling import Settling

_log = get_logger(__name__)
_FAILURES = (PeerError, IntegrityError, Overloaded, Unavailable)


@dataclass(frozen=True)
class PromptServices:
    """What every prompt needs; built once per worker."""

    node: Node
    channels: Channels
    arrivals: Arrivals
    settling: Settling
    reserving: Reserving
    policy: PrefillPolicy
    settings: DecodeSettings
    metrics: WorkerMetrics
    own_source: pb.KVSource
    """This worker, as prefill workers reach it for the beginning of a prompt."""


@dataclass(frozen=True)
class PromptPeers:
    """Who may bring a prompt's KV."""

    candidates: Sequence[pb.PrefillCandidate]
    require_prefill: bool
    kv_source: pb.KVSource | None
    """A worker that has some of it already."""


class Prompt:
    """The prompt of one request, from reservation until its sequence can run."""

    def __init__(
        self,
        services: PromptServices,
        spec: NewRequest,
        *,
        peers: PromptPeers,
        project: str,
        proof: Proof,
    ) -> None:
        self._services = services
        self._spec = spec
        self._candidates = peers.candidates[: services.settings.max_prefill_attempts]
        self._project = project
        self._require_prefill = peers.require_prefill
        self._kv_source = peers.kv_source
        self._proof = proof
        self._attempt: PrefillAttempt | None = None
        self._repeated: SampledToken | None = None
        """The first token, once it was sent: whoever takes over computes it again."""
        self._num_arrived_blocks = 0
        self._fetch_failure: TandemError | None = None
        self.finish_reason: FinishReason | None = None
        """Set when the sequence ended with its first token."""

    async def reserve(self) -> Reservation:
        """Reserve blocks for the whole prompt before anybody computes."""
        key = self._new_key()
        self._proof.mark()
        reservation = await self._services.reserving.reserve(self._spec, key)
        self._proof.lap("reserve")
        self._proof.cached_tokens = reservation.num_cached_tokens
        self._open(key, reservation)
        return reservation

    async def fill(self, reservation: Reservation) -> AsyncGenerator[SampledToken, None]:
        """Bring the prompt's KV here; yields the first token if a prefill worker sampled it."""
        if self._kv_source is not None:
            await self._fetch(reservation, self._kv_source)
        if self._is_local():
            await self._compute_here(*self._way_here())
            return
        failures: list[TandemError] = []
        for candidate in self._candidates:
            attempt = await self._next_attempt()
            if attempt is None:
                break
            try:
                async with aclosing(self._try(attempt, candidate)) as tokens:
                    async for token in tokens:
                        yield token
                return
            except _FAILURES as error:
                _log.warning(
                    "prefill.failed",
                    request_id=self._spec.request_id,
                    prefill=candidate.member_id,
                    code=error.code,
                    reason=error.message,
                )
                failures.append(error)
                if _is_to_blame(error):
                    self._proof.failed_prefill.append(candidate.member_id)
        failure = _decisive(failures)
        if self._require_prefill or isinstance(failure, Overloaded):
            raise failure
        await self._compute_here("fallback", failure.code)

    def abandon(self) -> None:
        """The request is over, whatever its state: blocks that may still be written go to quarantine, others back."""
        with self._leaving() as leaving:
            self._services.node.engine.post(
                lambda scheduler: scheduler.cancel(
                    self._spec.request_id, num_arrived=leaving.num_arrived, outcome=leaving.outcome
                )
            )

    def is_repeated(self, token: SampledToken) -> bool:
        """Whether ``token`` repeats the first token that was sent already.

        Raises:
            TokenDivergence: it should, but it is another token; nothing may follow what is in doubt.
        """
        if self._repeated is None:
            return False
        if token.token_id != self._repeated.token_id:
            raise TokenDivergence(
                f"The first token was {self._repeated.token_id}, computed again it is {token.token_id}."
            )
        self._repeated = None
        return True

    @property
    def _num_tokens(self) -> int:
        return len(self._spec.prompt_token_ids) + len(self._spec.resumed_output_token_ids)

    @property
    def _num_missing_tokens(self) -> int:
        """Tokens whose KV is neither cached here nor has arrived in the present attempt."""
        attempt, block_size = self._attempt, self._services.node.layout.block_size
        num_here = attempt.reservation.first_wanted + attempt.num_arrived if attempt is not None else 0
        return self._num_tokens - num_here * block_size

    async def _fetch(self, reservation: Reservation, source: pb.KVSource) -> None:
        """Get what ``source`` has of the sequence; if that fails, all goes on as if nobody had anything."""
        attempt, block_size = self._attempt, self._services.node.layout.block_size
        num_blocks = (self._num_tokens - 1) // block_size - reservation.first_wanted  # the last token is computed here
        if attempt is None or num_blocks <= 0:
            return
        timeout_s = self._services.settings.prefill_step_timeout_s
        try:
            self._proof.mark()
            num_found = await attempt.fetch(source, num_blocks=num_blocks, step_timeout_s=timeout_s)
            self._proof.lap("transfer")
        except _FAILURES as error:
            _log.warning(
                "fetch.failed",
                request_id=self._spec.request_id,
                source=source.member_id,
                code=error.code,
                reason=error.message,
            )
            self._fetch_failure = error
            return
        _log.event("fetch.arrived", request_id=self._spec.request_id, source=source.member_id, blocks=num_found)
        if num_found:
            self._proof.kv_source = source.member_id
            self._proof.fetched_tokens = num_found * block_size

    def _way_here(self) -> tuple[str, str]:
        """Return path and reason of a prompt that is computed here by choice."""
        if self._fetch_failure is not None:
            return "fallback", self._fetch_failure.code
        if self._kv_source is None or not self._proof.kv_source:
            return "local", "short prompt"
        return ("handover", "") if self._kv_source.kept_as else ("local", "prefix fetched")

    def _is_local(self) -> bool:
        node, num_missing = self._services.node, self._num_missing_tokens
        if self._kv_source is not None and num_missing <= node.layout.block_size:
            return True  # the end of a block that was being written: generating goes on, no prompt is computed
        return not self._require_prefill and self._services.policy.is_local(
            num_missing,
            self._candidates,
            num_running=node.engine.load.num_running,
            throughput=node.throughput,
        )

    async def _try(self, attempt: PrefillAttempt, candidate: pb.PrefillCandidate) -> AsyncGenerator[SampledToken, None]:
        self._proof.attempts += 1
        running = attempt.run(
            self._spec,
            candidate,
            self._project,
            kv_source=self._services.own_source if attempt.reservation.first_wanted else None,
            step_timeout_s=self._services.settings.prefill_step_timeout_s,
            proof=self._proof,
        )
        first: SampledToken | None = None
        async with aclosing(running) as tokens:
            async for token in tokens:
                first = token
                if not self.is_repeated(token):
                    yield token
                self._repeated = token
        if first is None:
            raise InternalError("An attempt ended without a token.")
        await self._start(candidate, first)

    async def _next_attempt(self) -> PrefillAttempt | None:
        """Return the attempt to use: the one that nobody was asked in, or a new one that keeps what arrived.

        None if quarantine took the blocks that another attempt needs: then the prompt waits to be computed here.
        """
        if self._attempt is None:
            raise InternalError("A prompt is filled before it is reserved.")
        if self._attempt.peer is None:
            return self._attempt
        key = self._new_key()
        with self._leaving() as leaving:
            reservation = await self._services.node.engine.call(lambda scheduler: self._again(scheduler, key, leaving))
        return None if reservation is None else self._open(key, reservation)

    def _again(self, scheduler: Scheduler, key: AttemptKey, leaving: Leaving) -> Reservation | None:
        """Reserve what did not arrive, or queue the prompt behind others (on the engine thread)."""
        try:
            return scheduler.reattempt(
                self._spec.request_id, key, num_arrived=leaving.num_arrived, outcome=leaving.outcome
            )
        except PoolExhausted:
            scheduler.add(self._spec)  # whole blocks that arrived are cached, and found again
            return None

    async def _start(self, candidate: pb.PrefillCandidate, first: SampledToken) -> None:
        self._proof.path, self._proof.prefill = "pd", candidate.member_id
        with self._leaving():
            self.finish_reason = await self._services.node.engine.call(
                lambda scheduler: scheduler.start(self._spec.request_id, first)
            )
        self._repeated = None
        self._book(recomputes_last_block=False)

    async def _compute_here(self, path: str, reason: str) -> None:
        self._proof.path, self._proof.reason = path, reason
        if self._attempt is not None:  # else it waits for room already
            with self._leaving() as leaving:
                await self._services.node.engine.call(
                    lambda scheduler: scheduler.run_locally(
                        self._spec.request_id, num_arrived=leaving.num_arrived, outcome=leaving.outcome
                    )
                )
        self._book(recomputes_last_block=True)

    @contextmanager
    def _leaving(self) -> Iterator[Leaving]:
        """Leave the attempt, if there is one; the command inside tells the engine."""
        attempt, self._attempt = self._attempt, None
        with self._services.settling.leaving(attempt) as leaving:
            self._num_arrived_blocks += leaving.num_arrived
            yield leaving

    def _open(self, key: AttemptKey, reservation: Reservation) -> PrefillAttempt:
        services = self._services
        self._attempt = PrefillAttempt(
            services.node, services.channels, services.arrivals, reservation=reservation, key=key
        )
        return self._attempt

    def _new_key(self) -> AttemptKey:
        return AttemptKey(self._spec.request_id, secrets.randbits(63))

    def _book(self, *, recomputes_last_block: bool) -> None:
        """Count every prompt token once: cached here, transferred, or computed here."""
        layout, proof = self._services.node.layout, self._proof
        covered = proof.cached_tokens + self._num_arrived_blocks * layout.block_size
        if recomputes_last_block:
            covered = min(covered, (self._num_tokens - 1) // layout.block_size * layout.block_size)
        proof.transferred_tokens = max(0, min(covered, self._num_tokens) - proof.cached_tokens)
        proof.recomputed_tokens = self._num_tokens - proof.cached_tokens - proof.transferred_tokens
        proof.kv_blocks = self._num_arrived_blocks
        proof.kv_bytes = self._num_arrived_blocks * layout.block_bytes
        if proof.kv_bytes:
            proof.transport = self._services.node.transfers.endpoint.transport
            proof.verified = self._services.node.sealer.enabled


def _is_to_blame(error: TandemError) -> bool:
    """Return whether the peer failed; a full or leaving one did not, nor one that found fault with the request."""
    return not isinstance(error, Overloaded | Draining) and not isinstance(error.__cause__, RequestError)


def _decisive(failures: Sequence[TandemError]) -> TandemError:
    """Return which failure decides what becomes of the prompt: fullness, wherever it was met, never falls back."""
    fullness = [failure for failure in failures if isinstance(failure, Overloaded)]
    if fullness or failures:
        return (fullness or failures)[-1]
    return NoPrefillWorker("No prefill worker is known for this model.", retry_after_s=1.0)
