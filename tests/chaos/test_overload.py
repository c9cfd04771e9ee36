"""Ten times more requests than the cluster can run, from two projects of which one sends ten times more.

The short form shows that everybody is answered, in fair shares; the long form, a minute of it, that memory stays flat
and that accepted streams keep their rhythm.
"""

import re
from collections.abc import Iterator

import pytest

from tests.chaos.conftest import Say
from tests.chaos.overload import WINDOW_GAPS, Load, Memory, overload
from tests.e2e.up import MODEL, Up, running_up

MAX_RUNNING = 4
MAX_QUEUE = 16
SETTINGS = {
    "TANDEM_MAX_RUNNING": str(MAX_RUNNING),
    "TANDEM_MAX_QUEUE": str(MAX_QUEUE),
    "TANDEM_QUEUE_TIMEOUT_S": "20",
    "TANDEM_MAX_MODEL_LEN": "1024",
    "TANDEM_KV_MEMORY_BYTES": str(48 * 2**20),  # its pages become resident with their first use: soon all of them
}
NUM_CALLERS = {"crowd": 10 * MAX_RUNNING, "few": MAX_RUNNING}
NUM_ANSWERS = 20
"""In the short form, for the project that asks less."""
OVERLOAD_S = 60.0
MIN_ANSWERS = 20
"""In the long form, for each project: with fewer, chance tells the shares. A slow host takes more than a minute."""
MIN_GAPS = 5 * WINDOW_GAPS
"""Between two tokens without overload: enough for a 99th percentile."""
LONG_WORDS, LONG_TOKENS = 120, 48
"""In the long form, whose prompts go through the prefill worker."""
MAX_SHARE_DIFFERENCE = 0.2
WARM_UP_S = 10.0
"""After which memory may not grow."""
MAX_GROWTH_SHARE, MAX_GROWTH_BYTES = 0.05, 16 * 2**20
MAX_LATENCY_RATIO = 2.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("overload"), SETTINGS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def keys(up: Up) -> dict[str, str]:
    created = {project: up.tandem("keys", "create", "--project", project) for project in NUM_CALLERS}
    return {project: re.findall(r"sk-tandem-\S+", text)[0] for project, text in created.items()}


def loads(up: Up, keys: dict[str, str], num_words: int, max_tokens: int) -> dict[str, Load]:
    return {project: Load(up.url, key, MODEL, num_words, max_tokens) for project, key in keys.items()}


def callers(running: dict[str, Load]) -> dict[Load, int]:
    return {running[project]: number for project, number in NUM_CALLERS.items()}


def memory_of(up: Up) -> Memory:
    pids = {name: up.pids(f"services.* {name}") for name in ("gateway", "prefill", "decode")}
    assert all(len(found) == 1 for found in pids.values()), pids
    return Memory({name: found[0] for name, found in pids.items()})


def check_answers(crowd: Load, few: Load) -> None:
    """Nothing broke, what was refused was told when to come back, and both projects got their shares."""
    assert crowd.heard.complaints + few.heard.complaints == []
    assert crowd.heard.num_refused > crowd.heard.num_answers  # it was an overload
    assert few.heard.num_answers > 0
    taken = sorted([crowd.heard.num_contended_tokens, few.heard.num_contended_tokens])
    assert taken[0] >= (1 - MAX_SHARE_DIFFERENCE) * taken[1], taken


def tell(say: Say, **loads: Load) -> None:
    for project, load in loads.items():
        heard = load.heard
        counts = f"{heard.num_answers} answered, {heard.num_refused} refused, {heard.num_contended_tokens} tokens"
        say(f"{project}: {heard.num_asked} requests, {counts}, p50 between tokens {1e3 * heard.median_gap_s:.0f} ms")


async def test_a_short_overload_is_answered_in_fair_shares(up: Up, keys: dict[str, str], say: Say) -> None:
    memory, running = memory_of(up), loads(up, keys, num_words=15, max_tokens=8)
    few = running["few"].heard
    await overload(callers(running), memory, is_enough=lambda: few.num_answers >= NUM_ANSWERS, deadline_s=120.0)
    tell(say, **running)
    check_answers(running["crowd"], running["few"])
    assert memory_of(up).pids == memory.pids  # nobody crashed


@pytest.mark.chaos_long
@pytest.mark.timeout(900)
async def test_a_minute_of_overload_leaves_memory_and_latency_as_they_were(
    up: Up, keys: dict[str, str], say: Say
) -> None:
    alone = await unloaded(up, keys["few"], num_callers=1)
    busy = await unloaded(up, keys["few"], num_callers=MAX_RUNNING)

    memory, running = memory_of(up), loads(up, keys, LONG_WORDS, LONG_TOKENS)

    def is_enough() -> bool:
        return memory.age_s >= OVERLOAD_S and all(each.heard.num_answers >= MIN_ANSWERS for each in running.values())

    await overload(callers(running), memory, is_enough=is_enough, deadline_s=400.0)
    after = await unloaded(up, keys["few"], num_callers=MAX_RUNNING)
    tell(say, alone=alone, busy=busy, after=after, **running)
    check_answers(running["crowd"], running["few"])
    assert memory_of(up).pids == memory.pids
    for name in memory.pids:
        early, late = (
            memory.median(name, WARM_UP_S, WARM_UP_S + 10.0),
            memory.median(name, OVERLOAD_S - 10.0, OVERLOAD_S),
        )
        say(f"{name}: {early / 2**20:.0f} MiB after {WARM_UP_S:g} s, {late / 2**20:.0f} MiB at the end")
        assert late <= early + max(MAX_GROWTH_SHARE * early, MAX_GROWTH_BYTES)
    # A host that slows down meanwhile shows it before or after: the worse of both is what it can do.
    alone_s, busy_s = alone.heard.p99_gap_s, max(busy.heard.p99_gap_s, after.heard.p99_gap_s)
    over_s = max(load.heard.p99_gap_s for load in running.values())
    say(
        f"p99 between tokens: {1e3 * over_s:.0f} ms in the overload, {over_s / busy_s:.2f} x that of {MAX_RUNNING} "
        f"streams without it, {over_s / alone_s:.2f} x that of a stream alone"
    )
    assert over_s <= MAX_LATENCY_RATIO * busy_s


async def unloaded(up: Up, key: str, *, num_callers: int) -> Load:
    """Let no more callers ask than can run at once; return what they heard."""
    load = Load(up.url, key, MODEL, LONG_WORDS, LONG_TOKENS)
    await overload(
        {load: num_callers}, memory_of(up), is_enough=lambda: len(load.heard.gaps_s) >= MIN_GAPS, deadline_s=150.0
    )
    assert load.heard.complaints == []
    assert load.heard.num_refused == 0
    return load


def test_afterwards_nothing_runs_or_waits_and_refusals_were_counted_by_reason(up: Up) -> None:
    def is_idle(text: str) -> bool:
        return all(f"\ntandem_requests_{state} 0.0\n" in text for state in ("running", "waiting"))

    up.until(lambda: is_idle(up.get("/metrics").text), "idle gateway")
    text = up.get("/metrics").text
    reasons = dict(re.findall(r'tandem_admission_refusals_total\{reason="(\w+)"\} ([\d.e+]+)', text))
    assert float(reasons["project_queue_full"]) > 0
    assert float(reasons["workers_full"]) == 0
