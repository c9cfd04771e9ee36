"""Every fault at every step of a hand-over: the sequence goes on with the same tokens, and nothing is left behind."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from services.faults.plan import Action, FaultPlan
from services.faults.steps import DECODE, GATEWAY, HANDOVER_STEPS
from services.gateway.answering.generation import GenerationLimits
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from tests.chaos.gateway import LIMITS, gateway
from tests.chaos.patience import with_patience
from tests.inprocess.client import SEEDED, expected_ids, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster, until
from tests.inprocess.hash_model import DEADLINE_S

PROMPT = prompt(150)
"""Enough blocks for two pushes."""
PARAMS = replace(SEEDED, max_tokens=20)
SHAPE = Shape(num_blocks=256, max_step_tokens=64)
SLOW_NOTICES = {"step": "transfer.notice.received", "action": "delay", "seconds": 0.2, "times": 99}
"""Who knows that everything arrived hangs up before the last message of a fetch."""
OF_TRANSFERS = {
    "transfer.push.posted": (Action.CORRUPT, Action.SWAP, Action.DROP),
    "transfer.notice.received": (Action.DROP, Action.DUPLICATE),
}
OF_MESSAGES = (Action.DELAY, Action.DROP, Action.DUPLICATE)


def cases() -> list[tuple[str, Action, str]]:
    """Return (step, action, side that misbehaves); a fetch leaves the asker once, and is settled only if it failed."""
    messages = [
        (step, action, side)
        for step, sides in HANDOVER_STEPS.items()
        for side in sides
        for action in OF_MESSAGES
        if "Settle" not in step and (step, action) != ("kv.Fetch.received", Action.DUPLICATE)
    ]
    return messages + [(step, action, DECODE) for step, actions in OF_TRANSFERS.items() for action in actions]


async def drained(running: Cluster, worker: Worker) -> int:
    with translated():
        request = pb.DrainRequest(timeout_s=DEADLINE_S, member_id=worker.node.member_id)
        return int((await running.channels.admin(worker.address).Drain(request)).remaining)


def settings(patience_s: float) -> dict[str, Any]:
    return {"handover_after_s": 0.0, "handover_keep_s": 3 * patience_s, "prefill_step_timeout_s": patience_s}


def limits(patience_s: float) -> GenerationLimits:
    slow_s = 4 * patience_s
    return replace(LIMITS, accept_timeout_s=patience_s, first_token_timeout_s=slow_s, token_timeout_s=slow_s)


async def leaves_with(step: str, action: Action, side: str, patience_s: float) -> int:
    """Drain the worker of a sequence, with the fault on ``side``; return how often it was injected."""
    async with cluster(shape=SHAPE, decode=settings(patience_s)) as running:
        others = [await running.add_decode(SHAPE, **settings(patience_s)) for _ in range(2)]
        first = running.decodes[0]
        caller = gateway(running, limits(patience_s), busy=others)
        first.model.gate.close()
        asking = asyncio.create_task(caller.ask(caller.generation(PROMPT, PARAMS)))
        await until(lambda: first.model.gate.num_waiting or asking.done())  # or it went elsewhere: impatient
        slow = [SLOW_NOTICES] if step == "kv.Fetch.sends.pushed" else []
        plan = FaultPlan.model_validate({"faults": [{"step": step, "action": action}, *slow]})
        sides = [caller.steps] if side == GATEWAY else [worker.steps for worker in running.decodes]
        for faults in sides:
            faults.arm(plan)
        leaving = asyncio.create_task(drained(running, first))
        await until(lambda: first.node.is_draining)
        first.model.gate.open()
        tokens = await asking
        assert [token.token_id for token in tokens] == expected_ids(PROMPT, PARAMS)
        assert await leaving == 0
        await running.settled()
        return sum(faults.injected[action] for faults in sides)


@pytest.mark.parametrize(("step", "action", "side"), cases(), ids=lambda value: str(getattr(value, "value", value)))
async def test_changes_no_token_and_leaves_nothing(step: str, action: Action, side: str) -> None:
    await with_patience(lambda patience_s: leaves_with(step, action, side, patience_s))
