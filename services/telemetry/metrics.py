"""Every Prometheus metric of the system, declared once; the registry is handed in.

Label values are few and known: paths, claims, stable error codes, route templates. Request ids, model
text, addresses and raw URLs are never labels. What is known beforehand is exported as 0 from the start,
so that an alarm on a rate works before the first event.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.errors import PayloadDigestMismatch, TokenDigestMismatch

PATHS = ("pd", "local", "fallback", "handover")
"""Which way an answer went."""
TOKEN_SOURCES = ("cached", "transferred", "recomputed", "computed")
"""Where the KV of a prompt token came from: found here, sent by a peer, computed here although a peer should
have sent it, computed here by choice (a prefill worker, or a local prefill)."""
CLAIMS = ("quarantined", "reserved", "leased", "used", "cached", "free")
"""The strongest claim on a KV block, strongest first."""
INTEGRITY_KINDS = (TokenDigestMismatch.code, PayloadDigestMismatch.code)
ATTEMPT_OUTCOMES = ("arrived", "nothing_posted", "unknown")
"""How an attempt to get blocks from a peer was left."""
ROLES = ("prefill", "decode", "embed")
REFUSAL_REASONS = ("too_many_open", "queue_full", "project_queue_full", "timeout", "workers_full")
"""Why a request was told to come back later."""

_STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKEN_LATENCY_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_WAIT_BUCKETS_S = (0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
_TRANSFER_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class GatewayMetrics:
    """What one gateway counts: requests as clients see them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._declare_requests(registry)
        self._declare_admission(registry)
        self._declare_tokens(registry)
        self._declare_cluster(registry)

    def _declare_requests(self, registry: CollectorRegistry) -> None:
        self.http_requests = Counter(
            "tandem_http_requests",
            "HTTP requests by method, route template and status code.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.requests = _requests_by_path(registry)
        self.fallbacks = _fallbacks(registry)
        self.refusals = Counter(
            "tandem_refusals",
            "Requests answered with an error before anything else was sent, by error code.",
            ["code"],
            registry=registry,
        )
        self.failures = Counter(
            "tandem_failures", "Sequences that no replay could mend, by error code.", ["code"], registry=registry
        )
        self.replays = Counter(
            "tandem_replays",
            "Sequences continued on another decode worker, by error code.",
            ["code"],
            registry=registry,
        )
        self.handovers = Counter(
            "tandem_handovers",
            "Sequences continued on another decode worker because theirs leaves; none of them was lost.",
            registry=registry,
        )
        self.jobs_held = Gauge("tandem_jobs_held", "Runs and responses that this gateway works on.", registry=registry)
        self.jobs_taken = Counter(
            "tandem_jobs_taken",
            "Runs and responses taken over because their gateway or their time was gone.",
            registry=registry,
        )
        self.timelines_lost = Counter(
            "tandem_timelines_lost", "Timelines of requests that could not be kept.", registry=registry
        )

    def _declare_admission(self, registry: CollectorRegistry) -> None:
        self.running = Gauge("tandem_requests_running", "Requests being answered.", registry=registry)
        self.waiting = Gauge("tandem_requests_waiting", "Requests that wait for admission.", registry=registry)
        self.admission_wait = Histogram(
            "tandem_admission_wait_seconds",
            "How long admitted requests had waited for their turn.",
            buckets=_WAIT_BUCKETS_S,
            registry=registry,
        )
        self.admission_refusals = Counter(
            "tandem_admission_refusals",
            "Requests told to come back later, by what was full.",
            ["reason"],
            registry=registry,
        )
        self.in_flight_tokens = Gauge(
            "tandem_in_flight_tokens", "Prompt and output tokens of the requests being answered.", registry=registry
        )
        _start_at_zero(self.admission_refusals, "reason", REFUSAL_REASONS)

    def _declare_tokens(self, registry: CollectorRegistry) -> None:
        self.prompt_tokens = _prompt_tokens(registry)
        self.output_tokens = _output_tokens(registry)
        self.time_to_first_token = Histogram(
            "tandem_time_to_first_token_seconds",
            "From the arrival of a request to its first token, by path.",
            ["path"],
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.inter_token_latency = Histogram(
            "tandem_inter_token_latency_seconds",
            "Time between two tokens of one sequence.",
            buckets=_TOKEN_LATENCY_BUCKETS_S,
            registry=registry,
        )
        _start_at_zero(self.time_to_first_token, "path", PATHS)

    def _declare_cluster(self, registry: CollectorRegistry) -> None:
        self.members = Gauge("tandem_members", "Workers known to this gateway, by role.", ["role"], registry=registry)
        self.members_stale = Gauge(
            "tandem_members_stale",
            "1 while the registry cannot be asked and the last answer stands.",
            registry=registry,
        )
        self.members_ignored = Counter(
            "tandem_members_ignored", "Member records without a valid signature.", registry=registry
        )
        _start_at_zero(self.members, "role", ROLES)


class EmbedMetrics:
    """What one embedding worker counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter("tandem_embedded_tokens", "Tokens that were embedded.", registry=registry)


class WorkerMetrics:
    """What one prefill or decode worker counts: tokens, blocks and bytes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._declare_requests(registry)
        self._declare_transfers(registry)
        self._declare_steps(registry)

    def set_ledger(self, blocks_by_claim: Mapping[str, int]) -> None:
        """Publish the block ledger; the keys are ``CLAIMS``."""
        for claim in CLAIMS:
            self.kv_blocks.labels(claim=claim).set(blocks_by_claim[claim])

    def _declare_requests(self, registry: CollectorRegistry) -> None:
        self.requests = _requests_by_path(registry)
        self.fallbacks = _fallbacks(registry)
        self.attempts = Counter(
            "tandem_prefill_attempts",
            "Attempts to have a prompt prefilled by a peer, by how they were left.",
            ["outcome"],
            registry=registry,
        )
        self.fetches = Counter(
            "tandem_kv_fetches",
            "Attempts to get blocks from a worker that has them, by how they were left.",
            ["outcome"],
            registry=registry,
        )
        self.handed_over = Counter(
            "tandem_sequences_handed_over",
            "Sequences that this worker ended in mid-stream because it leaves, for another one to go on with.",
            registry=registry,
        )
        self.prompt_tokens = _prompt_tokens(registry)
        self.output_tokens = _output_tokens(registry)
        self.time_to_first_token = Histogram(
            "tandem_worker_time_to_first_token_seconds",
            "From the arrival of a sequence at this worker to its first token, by path.",
            ["path"],
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.is_draining = Gauge("tandem_worker_draining", "1 while this worker leaves.", registry=registry)
        _start_at_zero(self.attempts, "outcome", ATTEMPT_OUTCOMES)
        _start_at_zero(self.fetches, "outcome", ATTEMPT_OUTCOMES)
        _start_at_zero(self.time_to_first_token, "path", PATHS)

    def _declare_transfers(self, registry: CollectorRegistry) -> None:
        labels = ["transport", "direction"]
        self.transferred_bytes = Counter(
            "tandem_transferred_bytes", "KV bytes moved between workers.", labels, registry=registry
        )
        self.transferred_blocks = Counter(
            "tandem_transferred_blocks", "KV blocks moved between workers.", labels, registry=registry
        )
        self.push_failures = Counter(
            "tandem_push_failures", "Pushes that ended without certainty, by error code.", ["code"], registry=registry
        )
        self.transfer_seconds = Histogram(
            "tandem_transfer_seconds",
            "From posting a push to its completion at the sender.",
            ["transport"],
            buckets=_TRANSFER_BUCKETS_S,
            registry=registry,
        )
        self.integrity_failures = Counter(
            "tandem_integrity_failures", "Blocks that arrived but were refused, by kind.", ["kind"], registry=registry
        )
        self.stale_notices = Counter("tandem_stale_notices", "Notices of attempts that were over.", registry=registry)
        self.quarantined_blocks = Counter(
            "tandem_quarantined_blocks",
            "Blocks put into quarantine because writes might still land.",
            registry=registry,
        )
        self.kv_blocks = Gauge("tandem_kv_blocks", "KV blocks by strongest claim.", ["claim"], registry=registry)
        _start_at_zero(self.integrity_failures, "kind", INTEGRITY_KINDS)
        _start_at_zero(self.kv_blocks, "claim", CLAIMS)

    def _declare_steps(self, registry: CollectorRegistry) -> None:
        self.steps = Counter("tandem_steps", "Forward passes.", registry=registry)
        self.step_seconds = Histogram(
            "tandem_step_seconds", "Duration of a forward pass.", buckets=_STEP_BUCKETS_S, registry=registry
        )
        self.step_rows = Histogram(
            "tandem_step_tokens", "Tokens computed by a forward pass.", buckets=_ROWS_BUCKETS, registry=registry
        )
        self.preemptions = Counter(
            "tandem_preemptions", "Running sequences that gave their blocks back and start again.", registry=registry
        )
        self.guessed_tokens = Counter(
            "tandem_guessed_tokens",
            "Tokens guessed ahead; the right ones needed no step of their own.",
            ["outcome"],
            registry=registry,
        )
        _start_at_zero(self.guessed_tokens, "outcome", ("right", "wrong"))
        self.running = Gauge("tandem_sequences_running", "Sequences that take part in steps.", registry=registry)
        self.waiting = Gauge("tandem_sequences_waiting", "Sequences that wait for their first step.", registry=registry)
        self.queued_tokens = Gauge("tandem_queued_tokens", "Prompt tokens not computed yet.", registry=registry)
        self.parked_blocks = Gauge(
            "tandem_kv_blocks_parked", "KV blocks kept in host memory beside the pool.", registry=registry
        )


def process_registry() -> CollectorRegistry:
    """Return a new registry with what the process itself tells: memory, CPU time, files, garbage collection."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def counter_values(registry: CollectorRegistry) -> dict[str, float]:
    """Return every counter of Tandem as ``name{label="value",...}`` and its value."""
    return {
        sample.name.removesuffix("_total") + _labels(sample.labels): sample.value
        for metric in registry.collect()
        if metric.type == "counter" and metric.name.startswith("tandem_")
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}" if labels else ""


def _requests_by_path(registry: CollectorRegistry) -> Counter:
    requests = Counter("tandem_requests", "Sequences answered, by path.", ["path"], registry=registry)
    _start_at_zero(requests, "path", PATHS)
    return requests


def _fallbacks(registry: CollectorRegistry) -> Counter:
    return Counter(
        "tandem_fallbacks",
        "Prompts prefilled by the decode worker although a prefill worker was wanted, by error code.",
        ["reason"],
        registry=registry,
    )


def _prompt_tokens(registry: CollectorRegistry) -> Counter:
    tokens = Counter(
        "tandem_prompt_tokens", "Prompt tokens by where their KV came from.", ["source"], registry=registry
    )
    _start_at_zero(tokens, "source", TOKEN_SOURCES)
    return tokens


def _output_tokens(registry: CollectorRegistry) -> Counter:
    return Counter("tandem_output_tokens", "Tokens generated.", registry=registry)


def _start_at_zero(metric: MetricWrapperBase, label: str, values: Iterable[str]) -> None:
    for value in values:
        metric.labels(**{label: value})
