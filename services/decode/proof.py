"""The proof of path: which way an answer went, filled in as it happens."""

from dataclasses import dataclass, field

from services.rpc import tandem_pb2 as pb
from services.telemetry.clock import Clock
from services.telemetry.metrics import WorkerMetrics


@dataclass
class Proof:
    """Counts tokens by origin and time by step for one request."""

    decode: str
    clock: Clock
    path: str = "local"
    prefill: str = ""
    kv_source: str = ""
    reason: str = ""
    transport: str = ""
    verified: bool = True
    cached_tokens: int = 0
    transferred_tokens: int = 0
    recomputed_tokens: int = 0
    fetched_tokens: int = 0
    prefill_cached_tokens: int = 0
    kv_blocks: int = 0
    kv_bytes: int = 0
    attempts: int = 0
    failed_prefill: list[str] = field(default_factory=list)
    """Candidates that failed; who was full or leaving did not."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    began_s: float = field(init=False)
    marked_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.began_s = self.marked_s = self.clock.now()

    def mark(self) -> None:
        """Start the time of the next step here."""
        self.marked_s = self.clock.now()

    def lap(self, step: str) -> None:
        """Book the time since the last mark under ``step``."""
        now_s = self.clock.now()
        self.timings_ms[step] = self.timings_ms.get(step, 0.0) + 1e3 * (now_s - self.marked_s)
        self.marked_s = now_s

    def first_token(self) -> None:
        """Note when the first token left; only the first call counts."""
        self.timings_ms.setdefault("first_token", 1e3 * (self.clock.now() - self.began_s))

    def publish(self, metrics: WorkerMetrics) -> None:
        """Count one sequence whose first token was sent; callers often leave before its last one."""
        if "first_token" not in self.timings_ms:
            return
        metrics.requests.labels(path=self.path).inc()
        metrics.time_to_first_token.labels(path=self.path).observe(self.timings_ms["first_token"] / 1e3)
        computed = "recomputed" if self.path == "fallback" else "computed"
        metrics.prompt_tokens.labels(source="cached").inc(self.cached_tokens)
        metrics.prompt_tokens.labels(source="transferred").inc(self.transferred_tokens)
        metrics.prompt_tokens.labels(source=computed).inc(self.recomputed_tokens)
        if self.path == "fallback":
            metrics.fallbacks.labels(reason=self.reason).inc()
        if self.kv_bytes:
            metrics.transferred_bytes.labels(transport=self.transport, direction="received").inc(self.kv_bytes)
            metrics.transferred_blocks.labels(transport=self.transport, direction="received").inc(self.kv_blocks)

    def to_message(self) -> pb.PathProof:
        """Return the wire form."""
        return pb.PathProof(
            path=self.path,
            prefill=self.prefill,
            decode=self.decode,
            cached_tokens=self.cached_tokens,
            transferred_tokens=self.transferred_tokens,
            recomputed_tokens=self.recomputed_tokens,
            kv_bytes=self.kv_bytes,
            transport=self.transport,
            verified=self.verified,
            timings_ms=self.timings_ms,
            attempts=self.attempts,
            prefill_cached_tokens=self.prefill_cached_tokens,
            reason=self.reason,
            kv_source=self.kv_source,
            fetched_tokens=self.fetched_tokens,
            failed_prefill=self.failed_prefill,
        )
