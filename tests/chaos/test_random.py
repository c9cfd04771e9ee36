"""Ten minutes of what a seed draws: kills, stalls, cancels, bursts; every answer is compared, every event audited.

``--chaos-seconds`` and ``--chaos-seed`` change how long and what.
"""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from services.faults.steps import DECODE, PREFILL
from tests.chaos.caller import LIMITS, Caller, Heard
from tests.chaos.conftest import Say
from tests.chaos.fleet import Fleet
from tests.chaos.load import Load
from tests.e2e.processes import WorkerProcess

pytestmark = [pytest.mark.chaos_long, pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(3600)]
FLEET = {PREFILL: 2, DECODE: 2}
DECODE_OPTIONS = {"prefill_step_timeout_s": 4}
TOKEN_TIMEOUT_S = 4.0
NUM_CALLERS, NUM_BURST = 6, 12
CANCEL_SHARE = 0.1
EVENTS = {"kill": 0.5, "stall": 0.3, "burst": 0.2}
REST_TIMEOUT_S = 120.0
MAX_FIRST_TOKENS = 3.0
"""The median recovery, in medians of the time to first token of streams that met no fault in the same run: it holds at
least one prefill, so a host that is slow at those is slow to recover."""
SMALL_FAULTS = {"shares": {"delay": 0.02}, "delay_s": 0.05}
"""What every worker suffers all the time, besides the events."""


@dataclass
class Chaos:
    """One run: what was done, and what it cost."""

    fleet: Fleet
    load: Load
    random: random.Random
    say: Say
    events: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)

    async def run(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        async with self.load.running():
            while time.monotonic() < end_s:
                await self._event()
                self.say(f"{end_s - time.monotonic():4.0f} s left; {self.summary()}")

    async def _event(self) -> None:
        """Let streams flow, do something to them, let them end, and look what is left."""
        self.fleet.arm(self.fleet.living(), seed=self.random.randrange(1 << 30), **SMALL_FAULTS)
        self.load.go_on()
        await asyncio.sleep(self.random.uniform(0.2, 2.0))
        kind = self._kind()
        self.events[kind] += 1
        match kind.partition(" ")[0]:
            case "kill":
                await self._kill(self._victim(kind.partition(" ")[2]))
            case "stall":
                await self._stall(self._victim(kind.partition(" ")[2]))
            case _:
                await self.load.burst(NUM_BURST)
        await self.load.rest(REST_TIMEOUT_S)
        await self.fleet.audit()
        for role, count in FLEET.items():
            missing = count - sum(worker.role == role for worker in self.fleet.living())
            for _ in range(missing):
                self.fleet.spawn(role)

    def _kind(self) -> str:
        """Draw what happens; only a role of which another worker has joined loses one."""
        kind = self.random.choices(list(EVENTS), list(EVENTS.values()))[0]
        role = self.random.choice((PREFILL, DECODE))
        if kind == "burst" or len(self.fleet.members(role)) < FLEET[role]:
            return "burst"
        return f"{kind} {role}"

    def _victim(self, role: str) -> WorkerProcess:
        return self.random.choice(self.fleet.members(role))

    async def _kill(self, victim: WorkerProcess) -> None:
        affected = self._affected(victim)
        before = [len(heard.token_ids) for heard in affected]
        killed_s = time.monotonic()
        victim.kill()
        async with asyncio.timeout(REST_TIMEOUT_S):
            while not all(_goes_on(heard, count) for heard, count in zip(affected, before, strict=True)):
                await asyncio.sleep(0.01)
        if affected:
            self.recoveries_s.append(time.monotonic() - killed_s)

    def _affected(self, victim: WorkerProcess) -> Sequence[Heard]:
        """Return the open streams that a worker serves, as far as their proof says."""
        open_streams = list(self.load.heard.values())
        if victim.role == PREFILL:
            return [heard for heard in open_streams if heard.proof is not None and not heard.token_ids]
        return [heard for heard in open_streams if heard.proof is not None and heard.proof.decode == victim.member_id]

    async def _stall(self, victim: WorkerProcess) -> None:
        victim.pause()
        try:
            await asyncio.sleep(self.random.uniform(1.0, 2.0 * TOKEN_TIMEOUT_S))
        finally:
            victim.resume()

    def summary(self) -> str:
        median, first = _median(self.recoveries_s), _median(self.load.first_tokens_s)
        return (
            f"events {dict(sorted(self.events.items()))}, {self.load.num_answers} answers, "
            f"{self.load.num_cancelled} cancelled, {self.load.num_replayed} replayed, "
            f"{self.fleet.tokens_compared} tokens compared, median recovery {median} of {len(self.recoveries_s)}, "
            f"undisturbed first token {first}"
        )


def _median(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s" if seconds else "-"


def _goes_on(heard: Heard, num_tokens: int) -> bool:
    """Whether a stream has more than it had, or has ended, or its caller left."""
    return len(heard.token_ids) > num_tokens or heard.is_over


async def test_whatever_happens_no_token_changes_and_nothing_is_left(
    fleet: Fleet, say: Say, pytestconfig: pytest.Config
) -> None:
    seed, duration_s = pytestconfig.getoption("--chaos-seed"), pytestconfig.getoption("--chaos-seconds")
    say(f"random chaos for {duration_s:g} s with --chaos-seed {seed}")
    fleet.call_as(Caller(fleet.cluster, limits=replace(LIMITS, token_timeout_s=TOKEN_TIMEOUT_S, max_replays=8)))
    generator = random.Random(seed)
    load = Load(fleet, NUM_CALLERS, CANCEL_SHARE, random.Random(generator.random()))
    chaos = Chaos(fleet, load, generator, say)
    await chaos.run(duration_s)
    fleet.disarm()
    await fleet.audit()
    injected = sum(len(worker.events("faults.injected")) for worker in fleet.cluster.workers)
    say(f"seed {seed}: {chaos.summary()}, {injected} small faults, 0 lost, 0 changed")
    assert load.num_answers > 0
    if chaos.recoveries_s:
        limit_s = MAX_FIRST_TOKENS * statistics.median(load.first_tokens_s)
        assert statistics.median(chaos.recoveries_s) < limit_s, (limit_s, sorted(chaos.recoveries_s))
