"""A decode worker leaves and hands its sequences over; it, or who takes them, is killed at each step of that."""

import asyncio

import pytest

from services.faults.steps import DECODE, HANDOVER_STEPS, PREFILL
from tests.chaos.caller import Heard
from tests.chaos.conftest import Say
from tests.chaos.fleet import NUM_QUESTIONS, Fleet, Line
from tests.e2e.processes import WorkerProcess

pytestmark = [pytest.mark.chaos_long, pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(1800)]
FLEET = {PREFILL: 1, DECODE: 3}
DECODE_OPTIONS = {"handover_after_s": 0, "handover_keep_s": 5, "prefill_step_timeout_s": 3}
OPTIONS = {"max_step_tokens": 256}
PROMPT_TOKENS = 560
"""More blocks than one push of a fetch takes."""
NUM_TOKENS = 80
"""Long enough that the worker leaves in the middle of it."""
TOKENS_BEFORE_LEAVING = 4
WAIT_TIMEOUT_S = 120.0
LEAVING, TAKING = "leaving", "taking"
NEVER_FOUND: Line = {"step": "kv.Fetch.sends.found", "action": "drop", "times": 1000}
"""Whoever takes a sequence gives the fetch up, and asks what may still be written."""
SLOW_NOTICES: Line = {"step": "transfer.notice.received", "action": "delay", "seconds": 0.3, "times": 1000}
"""Whoever knows that everything arrived hangs up before it is told that everything was pushed."""
CELLS = [(step, who) for step in HANDOVER_STEPS for who in (LEAVING, TAKING)]
IMPOSSIBLE = {("decode.Generate.sends.handed_over", TAKING)}
"""Who takes the sequences does not meet this step."""


async def run_cell(fleet: Fleet, step: str, who: str) -> list[Heard]:
    """Let a worker leave while it streams, and the victim kill itself at the step, if it comes to it."""
    leaving, taking, last = fleet.members(DECODE)[:3]
    victim = leaving if who == LEAVING else taking
    fleet.caller.busy = [taking.member_id, last.member_id]
    besides = [NEVER_FOUND] if step.startswith("kv.Settle") else []
    besides += [SLOW_NOTICES] if step == "kv.Fetch.sends.pushed" else []
    fleet.arm([taking], *besides)
    fleet.arm([victim], {"step": step, "action": "kill"}, *(besides if victim is taking else []))
    heard = [Heard() for _ in range(NUM_QUESTIONS)]
    asking = [asyncio.create_task(fleet.caller.ask(fleet.question(i), heard[i])) for i in range(NUM_QUESTIONS)]
    try:
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while any(len(each.token_ids) < TOKENS_BEFORE_LEAVING for each in heard):
                await asyncio.sleep(0.01)
        ended = asyncio.create_task(leaving.terminate(timeout_s=WAIT_TIMEOUT_S))
        await asyncio.gather(*asking)
        await ended
        await dead(victim)
    finally:
        fleet.caller.busy = ()
        fleet.disarm()
    for index, each in enumerate(heard):
        fleet.check(index, each.token_ids)
    await fleet.audit()
    return heard


async def dead(victim: WorkerProcess) -> None:
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        while victim.is_alive:
            await asyncio.sleep(0.02)
    assert victim.process.returncode == -9, victim.log_tail()


async def test_no_token_changes(fleet: Fleet, say: Say, pytestconfig: pytest.Config) -> None:
    wanted = pytestconfig.getoption("--chaos-step")
    cells = [cell for cell in CELLS if wanted in cell[0] and cell not in IMPOSSIBLE]
    streams = replayed = 0
    for number, (step, who) in enumerate(cells, start=1):
        await fleet.ready(**FLEET)
        heard = await run_cell(fleet, step, who)
        num_replayed = sum(each.replays > 0 for each in heard)
        streams, replayed = streams + len(heard), replayed + num_replayed
        say(f"{number}/{len(cells)} the {who} worker killed at {step}: {num_replayed} of {len(heard)} streams replayed")
    say(f"{len(cells)} kills, {streams} streams, {replayed} replayed, {fleet.tokens_compared} tokens compared, 0 lost")
