"""Every fault at every protocol step, at each side that meets it: the same tokens, and nothing left behind."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from services.faults.armed import ArmedFaults
from services.faults.plan import Action, FaultPlan
from services.faults.steps import DECODE, GATEWAY, PREFILL, REQUEST_STEPS
from tests.chaos.gateway import LIMITS, Gateway, gateway
from tests.chaos.patience import with_patience
from tests.inprocess.client import SEEDED, expected_ids, prompt
from tests.inprocess.cluster import Cluster, cluster

PROMPT = prompt(30)
LOST_OR_LATE = (Action.DELAY, Action.DROP)
A_MESSAGE = (*LOST_OR_LATE, Action.DUPLICATE)
"""What a message of a call may suffer, whose content nobody but TLS protects."""
OF_TRANSFERS = {
    "transfer.connect": LOST_OR_LATE,
    "transfer.push.posted": (*LOST_OR_LATE, Action.CORRUPT, Action.SWAP),
    "transfer.push.done": (Action.DELAY, Action.CORRUPT),
    "transfer.notice.received": (*A_MESSAGE, Action.CORRUPT),
}
"""A push whose end is never told keeps blocks quarantined, rightly, until its worker is replaced."""
SLOW_NOTICES = {"step": "transfer.notice.received", "action": "delay", "seconds": 0.2, "times": 99}
"""A decode worker that knows that everything arrived hangs up before the last message of a prefill worker."""
REPEATED = {"prefill.Run.sends.progress", "decode.Generate.sends.tokens", *OF_TRANSFERS} - {"transfer.connect"}
"""Steps that happen more than once in a request."""


def actions(step: str, role: str) -> Sequence[Action]:
    if step in OF_TRANSFERS:
        return OF_TRANSFERS[step]
    is_request_leaving = step.endswith(".received") and role == REQUEST_STEPS[step][0]
    return LOST_OR_LATE if is_request_leaving else A_MESSAGE


def cases() -> list[tuple[str, str, Action, int]]:
    """Return (step, role that misbehaves there, action, occurrence), without what happens when workers meet or part."""
    return [
        (step, role, action, nth)
        for step, roles in REQUEST_STEPS.items()
        if "Connect" not in step and "Settle" not in step
        for role in roles
        for action in actions(step, role)
        for nth in ((1, 2) if step in REPEATED else (1,))
    ]


def faults_of(running: Cluster, caller: Gateway, role: str) -> list[ArmedFaults]:
    workers = {PREFILL: running.prefills, DECODE: running.decodes, GATEWAY: []}[role]
    return [worker.steps for worker in workers] or [caller.steps]


def names(value: object) -> str:
    return str(value.value if isinstance(value, Action) else value)


async def asks_with(step: str, role: str, action: Action, nth: int, patience_s: float) -> int:
    """Run a request with the fault at ``role``; return how often it was injected."""
    impatient = replace(LIMITS, accept_timeout_s=patience_s, first_token_timeout_s=4 * patience_s)
    settings: dict[str, Any] = {"prefill_step_timeout_s": patience_s}
    async with cluster(prefills=2, decode=settings) as running:
        await running.add_decode(**settings)
        innocent = await running.add_decode(**settings)
        caller = gateway(running, replace(impatient, token_timeout_s=patience_s), busy=[innocent])
        sides = [faults for faults in faults_of(running, caller, role) if faults is not innocent.steps]
        slow = [SLOW_NOTICES] if step == "prefill.Run.sends.pushed" else []
        for faults in sides:
            faults.arm(FaultPlan.model_validate({"faults": [{"step": step, "action": action, "nth": nth}, *slow]}))
        tokens = await caller.ask(caller.generation(PROMPT, SEEDED))
        assert [token.token_id for token in tokens] == expected_ids(PROMPT, SEEDED)
        await running.settled()
        return sum(faults.injected[action] for faults in sides)


@pytest.mark.parametrize(("step", "role", "action", "nth"), cases(), ids=names)
async def test_changes_no_token_and_leaves_nothing(step: str, role: str, action: Action, nth: int) -> None:
    await with_patience(lambda patience_s: asks_with(step, role, action, nth, patience_s))
