"""SIGKILL at every protocol step, of prefill and of decode, with streams open: every stream ends as if undisturbed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from services.faults.steps import DECODE, PREFILL, REQUEST_STEPS
from tests.chaos.caller import Heard
from tests.chaos.conftest import Say
from tests.chaos.fleet import NUM_QUESTIONS, Fleet, Line
from tests.e2e.processes import WorkerProcess

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(1800)]
FLEET = {PREFILL: 2, DECODE: 3}
KILL_TIMEOUT_S = 60.0
LATER_OCCURRENCES = {
    "prefill.Run.sends.progress": 2,
    "transfer.push.posted": 2,
    "transfer.push.done": 2,
    "transfer.notice.received": 2,
    "decode.Generate.sends.tokens": 5,
}
"""At the first occurrence of the others."""
WITNESS_DELAY_S = 0.3
"""How long the other side of a step waits there, so that the victim dies meanwhile."""
SLOW_NOTICES: Line = {"step": "transfer.notice.received", "action": "delay", "seconds": 0.3, "times": 1000}
"""A decode worker that knows that everything arrived hangs up before the last message of a prefill worker."""
CELLS = [(step, role) for step in REQUEST_STEPS for role in (PREFILL, DECODE)]
SHORT = [
    ("prefill.Run.sends.first_token", PREFILL),
    ("decode.Generate.sends.tokens", DECODE),
    ("transfer.notice.received", DECODE),
    ("transfer.push.posted", PREFILL),
]
"""In this order: nobody is replaced, and the last one kills the last prefill worker."""


@dataclass(frozen=True)
class Cell:
    """One step and the role that is killed there."""

    step: str
    role: str

    @property
    def nth(self) -> int:
        return LATER_OCCURRENCES.get(self.step, 1)

    @property
    def witness(self) -> str:
        """Role whose workers meet the step: the victim's own, if it does."""
        return self.role if self.role in REQUEST_STEPS[self.step] else (PREFILL if self.role == DECODE else DECODE)


async def run_cell(fleet: Fleet, cell: Cell) -> list[Heard]:
    """Kill one worker at the step, with streams open; return what was heard."""
    if cell.step.startswith("prefill.Connect"):
        victim = arm_a_meeting(fleet, cell)
    else:
        victim = fleet.members(cell.role)[0]
        arm(fleet, cell, victim)
        only(fleet, victim)
    try:
        streams = asyncio.create_task(streams_while_alive(fleet, victim))
        giving_up = asyncio.create_task(give_up_while_alive(fleet, cell, victim))
        await killed(fleet, cell, victim)
        answers, _ = await asyncio.gather(streams, giving_up)
    finally:
        fleet.caller.busy = ()
        fleet.disarm()
    await fleet.audit()
    return answers


async def streams_while_alive(fleet: Fleet, victim: WorkerProcess) -> list[Heard]:
    """Keep streams open until the victim is dead and they have ended."""
    answers: list[Heard] = []
    while victim.is_alive:
        wave = await asyncio.gather(*(fleet.caller.ask(fleet.question(index)) for index in range(NUM_QUESTIONS)))
        for index, answer in enumerate(wave):
            assert answer.reason == "length"
            fleet.check(index, answer.token_ids)
        answers += wave
    return answers


async def give_up_while_alive(fleet: Fleet, cell: Cell, victim: WorkerProcess) -> None:
    """Leave attempts early where that is what brings the step about: writes are settled only then."""
    while cell.step.startswith("prefill.Settle") and victim.is_alive:
        await fleet.caller.give_up(fleet.question(0), after_tokens=0)


def arm(fleet: Fleet, cell: Cell, victim: WorkerProcess) -> None:
    """Let the victim kill itself at the step, or let its peers wait there until it is killed."""
    slow = [SLOW_NOTICES] if cell.step == "prefill.Run.sends.pushed" else []
    fleet.arm(fleet.members(DECODE), *slow)
    if cell.witness == cell.role:
        lines = [{"step": cell.step, "action": "kill", "nth": cell.nth}]
        fleet.arm([victim], *lines, *(slow if cell.role == DECODE else []))
    else:
        line = {"step": cell.step, "action": "delay", "nth": cell.nth, "seconds": WITNESS_DELAY_S}
        fleet.arm(fleet.members(cell.witness), line, *(slow if cell.witness == DECODE else []))


def arm_a_meeting(fleet: Fleet, cell: Cell) -> WorkerProcess:
    """Workers connect when they meet: let another prefill worker join."""
    line = {"step": cell.step, "action": "kill"}
    if cell.role == PREFILL:
        return fleet.spawn(PREFILL, line)
    victim = fleet.members(DECODE)[0]
    fleet.arm([victim], line)
    fleet.spawn(PREFILL)
    return victim


def only(fleet: Fleet, victim: WorkerProcess) -> None:
    """Send everything to the victim, of those of its role, until it fails."""
    fleet.caller.busy = [worker.member_id for worker in fleet.members(victim.role) if worker is not victim]


async def killed(fleet: Fleet, cell: Cell, victim: WorkerProcess) -> None:
    """Wait until the victim is dead, by its own hand or by ours."""
    witnesses = fleet.members(cell.witness)
    before = fleet.injected(witnesses, cell.step)
    async with asyncio.timeout(KILL_TIMEOUT_S):
        while victim.is_alive:
            if cell.witness != cell.role and fleet.injected(witnesses, cell.step) > before:
                victim.kill()
            await asyncio.sleep(0.02)
    assert victim.process.returncode == -9
    if cell.witness == cell.role:
        assert victim.events("faults.injected", step=cell.step, action="kill")


async def run_cells(fleet: Fleet, cells: Sequence[tuple[str, str]], say: Say, *, replace: bool) -> None:
    streams = replayed = 0
    for number, (step, role) in enumerate(cells, start=1):
        if replace:
            await fleet.ready(**FLEET)
        answers = await run_cell(fleet, Cell(step, role))
        num_replayed = sum(answer.replays > 0 for answer in answers)
        streams, replayed = streams + len(answers), replayed + num_replayed
        say(f"{number}/{len(cells)} {role} killed at {step}: {len(answers)} streams, {num_replayed} of them replayed")
    say(f"{len(cells)} kills, {streams} streams, {replayed} replayed, {fleet.tokens_compared} tokens compared, 0 lost")


async def test_a_worker_killed_at_some_steps_changes_no_token(fleet: Fleet, say: Say) -> None:
    await run_cells(fleet, SHORT, say, replace=False)


@pytest.mark.chaos_long
async def test_a_worker_killed_at_any_step_changes_no_token(
    fleet: Fleet, say: Say, pytestconfig: pytest.Config
) -> None:
    wanted = pytestconfig.getoption("--chaos-step")
    await run_cells(fleet, [cell for cell in CELLS if wanted in cell[0]], say, replace=True)
