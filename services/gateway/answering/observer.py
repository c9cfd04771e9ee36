"""What is counted and noted of every sequence: metrics and the request's timeline."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.errors import TandemError
from services.gateway.answering.generation import Generation
from services.gateway.answering.proof import TIMING_STEPS, PathProof
from services.gateway.answering.sequence import FinishReason, SequenceRequest
from services.gateway.web.exchange import Exchange
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger
from services.telemetry.metrics import PATHS, GatewayMetrics
from services.telemetry.timeline import OpenStep, Timeline

_log = get_logger(__name__)
# Steps that the decode worker timed one after the other; the first one begins when it is called.
_WORKER_STEPS = tuple(step for step in TIMING_STEPS if step not in ("gateway", "route", "first_token"))


class ObservedSequence:
    """Counts one sequence while it runs."""

    def __init__(self, metrics: GatewayMetrics, clock: Clock, exchange: Exchange) -> None:
        self._metrics = metrics
        self._clock = clock
        self._started_s = exchange.started_s
        self._last_token_s: float | None = None
        self.first_token_s: float | None = None
        self.num_tokens = 0
        self.reason: FinishReason | None = None

    def tokens(self, count: int) -> None:
        """Count tokens that came together."""
        now_s = self._clock.now()
        if self._last_token_s is None:
            self.first_token_s = now_s - self._started_s
        else:
            self._metrics.inter_token_latency.observe(now_s - self._last_token_s)
        self._last_token_s = now_s
        self.num_tokens += count
        self._metrics.output_tokens.inc(count)

    def ended(self, reason: FinishReason) -> None:
        """Note the normal end."""
        self.reason = reason


class AnswerObserver:
    """Watches sequences on behalf of operators and of the caller's timeline."""

    def __init__(self, metrics: GatewayMetrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock

    @contextmanager
    def sequence(
        self, request: SequenceRequest, exchange: Exchange, generation: Generation
    ) -> Iterator[ObservedSequence]:
        """Watch one sequence for the length of the block."""
        observed = ObservedSequence(self._metrics, self._clock, exchange)
        reserved = len(request.prompt_token_ids) + request.sampling.max_tokens
        began_ms = exchange.timeline.elapsed_ms
        self._metrics.running.inc()
        self._metrics.in_flight_tokens.inc(reserved)
        try:
            with exchange.timeline.step("generate", sequence=request.request_id) as step:
                yield observed
        except TandemError as error:
            self._metrics.failures.labels(code=error.code).inc()
            _log.warning("sequence.failed", request_id=request.request_id, code=error.code, reason=error.message)
            raise
        finally:
            self._metrics.running.dec()
            self._metrics.in_flight_tokens.dec(reserved)
            for code in generation.replay_codes:
                self._metrics.replays.labels(code=code).inc()
            self._metrics.handovers.inc(generation.num_handovers)
            self._note(exchange.timeline, step, began_ms, observed, generation.proof)
        self._count(request, observed, generation.proof)

    def refused(self, error: TandemError) -> None:
        """Count a request that got an error and nothing else."""
        self._metrics.refusals.labels(code=error.code).inc()

    def _count(self, request: SequenceRequest, observed: ObservedSequence, proof: PathProof) -> None:
        _log.event(
            "sequence.ended",
            request_id=request.request_id,
            reason=observed.reason,
            path=proof.path,
            prompt_tokens=len(request.prompt_token_ids),
            output_tokens=observed.num_tokens,
            replays=proof.replays,
            handovers=proof.handovers,
        )
        if proof.path not in PATHS:
            return
        self._metrics.requests.labels(path=proof.path).inc()
        if proof.path == "fallback":
            self._metrics.fallbacks.labels(reason=proof.reason or "unknown").inc()
        if observed.first_token_s is not None:
            self._metrics.time_to_first_token.labels(path=proof.path).observe(observed.first_token_s)
        sources = self._metrics.prompt_tokens
        sources.labels(source="cached").inc(proof.cached_tokens)
        sources.labels(source="transferred").inc(proof.transferred_tokens)
        computed = "recomputed" if proof.path == "fallback" else "computed"
        sources.labels(source=computed).inc(proof.recomputed_tokens)

    @staticmethod
    def _note(
        timeline: Timeline, step: OpenStep, began_ms: float, observed: ObservedSequence, proof: PathProof
    ) -> None:
        step.note(
            path=proof.path,
            prefill=proof.prefill or "none",
            decode=proof.decode,
            transport=proof.transport or "none",
            kv_bytes=proof.kv_bytes,
            output_tokens=observed.num_tokens,
            finish_reason=observed.reason or "none",
            replays=proof.replays,
        )
        start_ms = began_ms
        for name in ("route", *_WORKER_STEPS):
            duration_ms = proof.timings_ms.get(name)
            if duration_ms is not None:
                timeline.add(name, start_ms=start_ms, duration_ms=duration_ms, sequence=step.attributes["sequence"])
                start_ms += duration_ms
        if observed.first_token_s is not None:
            timeline.add("first_token", start_ms=1e3 * observed.first_token_s, duration_ms=0.0)
