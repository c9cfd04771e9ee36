"""Runs that the official SDK's tests expect to exist, in the state that the test needs."""

from collections.abc import Sequence

from services.gateway.apis.openai.assistants.assistants import assistant_json
from services.gateway.apis.openai.assistants.run_bodies import CreateRun, run_json
from services.gateway.jobs.events import Event, numbered
from services.gateway.jobs.operations import ClaimThread, WriteJob
from services.gateway.runs import lifecycle
from services.gateway.runs.documents import call_part, calls_delta, calls_step, message_step, with_calls
from services.gateway.runs.events import run_event, step_event
from services.gateway.runs.job import Job, Used
from services.gateway.runs.turns import TurnPlan
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import ASSISTANT, RUN, STEP, THREAD

NEVER_MS = 4_000_000_000_000
"""When the seeded runs expire."""
_CALL = {"id": "call_1", "type": "function", "name": "weather", "arguments": "{}"}
_THREAD, _RUN, _STEP = THREAD.ref("thread_id"), RUN.ref("run_id"), STEP.ref("step_id")
_USAGE = Used(3, 4).usage


def run_seeds(test_id: str, created: int, others: Sequence[str]) -> list[Operation]:
    """Return the run ``run_id`` with its steps, and ``others`` around both for lists to begin and end at."""
    assistant = assistant_json(ASSISTANT.ref("assistant_id"), created, {"model": "gpt-4.1"})
    body = CreateRun(assistant_id="assistant_id")
    run = run_json(_RUN, _THREAD, assistant, body, created=created, expires=NEVER_MS // 1000)
    begin, end = others
    ended = lifecycle.completed(lifecycle.started(run, created), created, _USAGE)
    around = {name: Create(RUN.ref(name), {**ended, "id": name}, _THREAD) for name in others}
    steps = {
        name: Create(STEP.ref(name), message_step(STEP.ref(name), run, "message_id", created), _RUN)
        for name in (begin, "step_id", end)
    }
    return [around[begin], *_run(test_id, run, created), *steps.values(), around[end]]


def _run(test_id: str, run: lifecycle.Body, created: int) -> list[Operation]:
    started = lifecycle.started(run, created)
    if "submit_tool_outputs" in test_id:
        return _waiting(started, created)
    if "cancel" in test_id:
        entries = numbered([Event("thread.run.created", run), run_event(run), run_event(started)], 1)
        return [
            ClaimThread(_THREAD, _RUN),
            Create(_RUN, started, _THREAD, private=Job().to_bytes()),
            WriteJob(_RUN, 1, 0, NEVER_MS, NEVER_MS, entries, retention_s=600.0),
        ]
    return [Create(_RUN, lifecycle.completed(started, created, _USAGE), _THREAD)]


def _waiting(started: lifecycle.Body, created: int) -> list[Operation]:
    """Return a run that waits for the output of one call."""
    step = calls_step(STEP.ref("step_waiting"), started, created)
    waiting = lifecycle.needs_outputs(started, [_CALL], _USAGE)
    part = call_part(0, _CALL["arguments"], call_id=_CALL["id"], name=_CALL["name"])
    events = [
        Event("thread.run.step.created", step),
        step_event(step),
        Event("thread.run.step.delta", calls_delta(step["id"], [part]), (7,)),
        run_event(waiting),
    ]
    job = Job(plan=TurnPlan("card", (1, 2, 3), {}), first_event=1, turn=Used(3, 1))
    return [
        ClaimThread(_THREAD, _RUN),
        Create(_RUN, waiting, _THREAD, private=job.to_bytes()),
        WriteJob(_RUN, 1, 0, NEVER_MS, NEVER_MS, numbered(events, 1), retention_s=600.0),
        Create(STEP.ref("step_waiting"), with_calls(step, [_CALL]), _RUN),
    ]
