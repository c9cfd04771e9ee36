"""A prefill worker stopped in the middle of a push over TCP, and continued much later, changes no token of anyone."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.faults.steps import DECODE, PREFILL
from tests.chaos.caller import Question
from tests.chaos.conftest import Say
from tests.chaos.fleet import NUM_QUESTIONS, Fleet
from tests.e2e.harness import seeded
from tests.e2e.processes import WorkerProcess

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]
FLEET = {PREFILL: 1, DECODE: 1}
OPTIONS = {"transport": "tcp", "max_step_tokens": 512}
"""A push of 512 tokens has 12 MB, more than a poll sends: some of it is still with the sender."""
DECODE_OPTIONS = {"prefill_step_timeout_s": 8}
LONG = 1100
STOP_TIMEOUT_S = 60.0


async def stand_still(worker: WorkerProcess) -> None:
    """Wait until the worker has stopped itself."""
    state = Path(f"/proc/{worker.process.pid}/stat")
    async with asyncio.timeout(STOP_TIMEOUT_S):
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.01)
    worker.is_stopped = True


async def ask_everything(fleet: Fleet) -> list[Question]:
    """Ask all questions at once, and return them."""
    questions = [fleet.question(index) for index in range(NUM_QUESTIONS)]
    answers = await asyncio.gather(*map(fleet.caller.ask, questions))
    for index, answer in enumerate(answers):
        fleet.check(index, answer.token_ids)
    return questions


async def long_question(fleet: Fleet) -> tuple[Question, list[int]]:
    """Return a question of several pushes, and what its answer is undisturbed."""
    prompt = (await fleet.cluster.prompts()).ids(LONG, seed=99)
    question = Question(tuple(prompt), seeded(24, seed=99), project="undisturbed")
    return question, (await fleet.caller.ask(question)).token_ids


async def stop_for(fleet: Fleet, seconds: float, say: Say) -> None:
    (prefill,), (decode,) = fleet.members(PREFILL), fleet.members(DECODE)
    question, expected = await long_question(fleet)
    before = (await fleet.integrity_failures())["stale"]
    fleet.arm([prefill], {"step": "transfer.push.posted", "action": "stop"})
    disturbed = replace(question, project=f"stopped for {seconds}")
    asking = asyncio.create_task(fleet.caller.ask(disturbed))
    await stand_still(prefill)
    until_s = asyncio.get_running_loop().time() + seconds
    try:
        answer = await asking
        assert answer.token_ids == expected
        assert answer.proof is not None
        assert (answer.proof.path, answer.proof.reason) == ("fallback", "peer_stalled")
        meanwhile: list[Question] = []
        while not meanwhile or asyncio.get_running_loop().time() < until_s:
            meanwhile += await ask_everything(fleet)
            assert (await fleet.cluster.status(decode)).ledger["quarantined"] > 0
    finally:
        prefill.resume()
        fleet.disarm()
    await fleet.audit()
    again = await asyncio.gather(*map(fleet.caller.ask, meanwhile[-NUM_QUESTIONS:]))
    for index, cached in enumerate(again):
        assert cached.proof is not None
        assert cached.proof.cached_tokens > 0
        fleet.check(index, cached.token_ids)
    assert (await fleet.caller.ask(disturbed)).token_ids == expected
    late = (await fleet.integrity_failures())["stale"] - before
    say(f"stopped {seconds:g} s in a push: {len(meanwhile)} streams meanwhile, {late} late notices, no token changed")


async def test_for_some_seconds(fleet: Fleet, say: Say) -> None:
    await stop_for(fleet, 3.0, say)


@pytest.mark.chaos_long
async def test_for_half_a_minute(fleet: Fleet, say: Say) -> None:
    await stop_for(fleet, 30.0, say)


@pytest.mark.chaos_long
async def test_a_worker_with_too_much_in_quarantine_retires_and_its_streams_end_well(fleet: Fleet, say: Say) -> None:
    (prefill,), (other,) = fleet.members(PREFILL), fleet.members(DECODE)
    question, expected = await long_question(fleet)
    doomed = fleet.spawn(DECODE, max_quarantined_share=0.05)
    await fleet.ready(prefill=1, decode=2)
    fleet.caller.busy = [other.member_id]
    fleet.arm([prefill], {"step": "transfer.push.posted", "action": "stop"})
    asking = asyncio.create_task(fleet.caller.ask(replace(question, project="quarantine")))
    try:
        await stand_still(prefill)
        assert (await asking).token_ids == expected
        await doomed.wait_until(lambda: bool(doomed.events("worker.unhealthy")), "retirement")
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while doomed.is_alive:
                await asyncio.sleep(0.05)
    finally:
        prefill.resume()
        fleet.disarm()
        fleet.caller.busy = ()
    assert doomed.process.returncode == 0
    assert [event["remaining"] for event in doomed.events("worker.drained")] == [0]
    await ask_everything(fleet)
    await fleet.audit()
    say(f"{doomed} retired: {doomed.events('worker.unhealthy')[0]['reason']}")
