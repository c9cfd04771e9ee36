"""All rows of the table, in order, and where their figures come from.

A part is measured by itself (``PARTS``), a workload on a running server (``LOADS``), and a difference is computed from
others (``DIFFERENCES``).
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.front import measure as front
from bench.row import Figures, Goal, Row
from bench.rows import cache_events, hashing, int4, routing, scheduler_step, speculation, start, transfer

TANDEM, TANDEM_PD, TANDEM_LOCAL = "tandem", "tandem-pd", "tandem-local"
"""Our systems: as it comes, which is the one that is judged; with every prompt prefilled by a peer; with none."""
PD, WHOLE, CHUNKED = "vllm-pd", "vllm", "vllm-chunk256"
"""Names of the peers that goals speak of: P/D, whole on all cores, and the same with chunks of 256 tokens."""
LLAMA = "llama.cpp"
"""The peer of four-bit weights."""
PACED_INTERVAL_S = 0.05
"""Between two steps where latency is measured: 256 streams then make 5,120 tokens/s."""


@dataclass(frozen=True)
class Part:
    """What is measured without a cluster: rows that come out of one measurement."""

    rows: tuple[Row, ...]
    measure: Callable[[], Figures]
    system: str = TANDEM


@dataclass(frozen=True)
class Load:
    """A row that is one figure of a workload of ``bench.load``."""

    row: Row
    workload: str
    figure: str


@dataclass(frozen=True)
class Difference:
    """A row that is computed from figures of our systems, each named by system and row."""

    row: Row
    needs: tuple[tuple[str, str], ...]
    compute: Callable[..., float]
    """Of the medians of ``needs``, in their order."""


def _transfer() -> Figures:
    figures = transfer.measure()
    return {"transfer_share": figures.share, "transfer_ms": figures.blocks_ms}


def _speculation() -> Figures:
    figures = speculation.measure()
    return {"speculation": figures.speedup, "speculation_same": figures.same_tokens}


def _front() -> Figures:
    full, paced = front.measure(), front.measure(max_tokens=60, interval_s=PACED_INTERVAL_S)
    return {
        "front_rate": full.tokens_per_gateway_core_s,
        "front_paced_rate": paced.tokens_per_gateway_core_s,
        "front_latency": paced.latency_p50_ms,
    }


INT4_ROWS = (
    Row("int4", "four-bit weights, one stream, two threads, no server", "tok/s", (Goal(1.2, peer=LLAMA),)),
    Row("int4_perplexity", "the same weights, perplexity on a fixed text", ""),
)
PARTS = (
    Part(
        (Row("scheduler", "scheduler step, 1,000 running requests, no model", "ms", (Goal(1, is_most=True),)),),
        lambda: {"scheduler": scheduler_step.measure()},
    ),
    Part(
        (Row("routing", "routing, 1,000 workers, 100,000-token prompt, after hashing", "ms", (Goal(1, True),)),),
        lambda: {"routing": routing.measure()},
    ),
    Part(
        (Row("hashing", "block hashing, one core", "M tok/s", (Goal(20),)),),
        lambda: {"hashing": hashing.measure()},
    ),
    Part(
        (Row("turn_hashed", "a turn of 100 tokens after 2,000, hashed at the gateway", "tokens", (Goal(116, True),)),),
        lambda: {"turn_hashed": hashing.count_of_turn()},
    ),
    Part(
        (Row("cache_events", "block events applied, one core", "events/s", (Goal(20_000),)),),
        lambda: {"cache_events": cache_events.measure()},
    ),
    Part(
        (
            Row("transfer_share", "KV of 2,000 tokens over NIXL, of one large descriptor", "%", (Goal(90),)),
            Row("transfer_ms", "the same, time", "ms"),
        ),
        _transfer,
    ),
    Part(
        (Row("digests_ms", "payload digests of 2,000 tokens, both sides", "ms"),),
        lambda: {"digests_ms": transfer.measure_digests()},
    ),
    Part(
        (
            Row("speculation", "prompt lookup on a summary, decode rate over the same without", "x", (Goal(1.5),)),
            Row("speculation_same", "the same, tokens that are as without", "%", (Goal(100),)),
        ),
        _speculation,
    ),
    Part(INT4_ROWS, lambda: int4.measure(int4.work()).by_row()),
    Part(
        (
            Row("front_rate", "front, stub engine, 256 clients, as fast as they take", "tok/s a core", (Goal(40_000),)),
            Row("front_paced_rate", "front, the same at 20 steps/s", "tok/s a core"),
            Row("front_latency", "front, added latency p50 at 20 steps/s", "ms", (Goal(2, True),)),
        ),
        _front,
    ),
    Part(
        (Row("start", "`tandem up`, second start, to the first token", "s", (Goal(10, True),)),),
        lambda: {"start": start.measure()},
    ),
)

LOADS = (
    Load(Row("one", "one stream", "tok/s", (Goal(2, peer=PD), Goal(0.85, peer=WHOLE))), "one", "tok_s"),
    Load(Row("batch16", "16 streams", "tok/s", (Goal(2, peer=PD), Goal(0.85, peer=WHOLE))), "batch16", "tok_s"),
    Load(Row("short_ttft", "prompts of ~100 tokens, TTFT p50", "ms"), "short", "ttft_p50_ms"),
    Load(
        Row("prefill", "prompts of ~2,000 tokens", "tok/s", (Goal(2.4, peer=PD), Goal(1.1, peer=WHOLE))),
        "prefill",
        "prompt_tok_s",
    ),
    Load(Row("prefill_ttft", "prompts of ~2,000 tokens, TTFT p50", "ms"), "prefill", "ttft_p50_ms"),
    Load(Row("kv_wait", "prompts of ~2,000 tokens, wait for KV p50", "ms"), "prefill", "kv_wait_p50_ms"),
    Load(Row("mixed_itl_p50", "mixed: ITL p50", "ms"), "mixed", "itl_p50_ms"),
    Load(Row("mixed_itl_p99", "mixed: ITL p99", "ms", (Goal(0.2, True, CHUNKED),)), "mixed", "itl_p99_ms"),
    Load(Row("mixed_steady", "mixed: steady streams", "tok/s", (Goal(1.3, peer=WHOLE),)), "mixed", "steady_tok_s"),
    Load(
        Row("mixed_ttft", "mixed: TTFT p50 of long prompts", "ms", (Goal(0.95, True, WHOLE),)),
        "mixed",
        "long_ttft_p50_ms",
    ),
    Load(Row("turns", "turns 2 to 6: TTFT p50", "ms", (Goal(0.6, True, WHOLE),)), "turns", "ttft_turns_2_to_6_p50_ms"),
)

DIFFERENCES = (
    Difference(
        Row("mixed_spread", "mixed: ITL p99 / p50", "", (Goal(1.5, True),)),
        ((TANDEM, "mixed_itl_p99"), (TANDEM, "mixed_itl_p50")),
        lambda p99, p50: p99 / p50,
    ),
    Difference(
        Row("pd_cost_short", "TTFT of P/D over a local prefill, ~100 tokens", "ms", (Goal(10, True),)),
        ((TANDEM_PD, "short_ttft"), (TANDEM_LOCAL, "short_ttft")),
        lambda disaggregated, local: disaggregated - local,
    ),
    Difference(
        Row("pd_cost_long", "TTFT of P/D over a local prefill, ~2,000 tokens", "%", (Goal(5, True),)),
        ((TANDEM_PD, "prefill_ttft"), (TANDEM_LOCAL, "prefill_ttft")),
        lambda disaggregated, local: 100 * (disaggregated / local - 1),
    ),
    Difference(
        Row("digest_share", "payload digests, of TTFT at ~2,000 tokens", "%", (Goal(1, True),)),
        ((TANDEM, "digests_ms"), (TANDEM, "prefill_ttft")),
        lambda digests_ms, ttft_ms: 100 * digests_ms / ttft_ms,
    ),
    Difference(
        Row("kv_wait_share", "KV transfer that is waited for, of TTFT at ~2,000 tokens", "%", (Goal(1, True),)),
        ((TANDEM, "kv_wait"), (TANDEM, "prefill_ttft")),
        lambda wait_ms, ttft_ms: 100 * wait_ms / ttft_ms,
    ),
)

ROWS = (
    *(load.row for load in LOADS),
    *(difference.row for difference in DIFFERENCES),
    *(row for part in PARTS for row in part.rows),
)
NAMES = tuple(row.name for row in ROWS)
