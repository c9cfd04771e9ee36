"""How a run ends: the events that close what is open, then the run itself. Pure functions."""

from dataclasses import replace

from services.errors import InvalidRequest, Overloaded, TandemError
from services.gateway.jobs.events import Event
from services.gateway.runs import lifecycle
from services.gateway.runs.documents import (
    IncompleteReason,
    StepEnd,
    completed_message,
    ended_step,
    incomplete_message,
)
from services.gateway.runs.events import message_event, run_event, step_event
from services.gateway.runs.job import Job, Used
from services.gateway.runs.lifecycle import Body, ErrorCode, LimitReason
from services.gateway.runs.transcript import Transcript


def completed(run: Body, job: Job, said: Transcript, now: int) -> list[Event]:
    """Return the end of a run whose last turn, ``job.turn``, ended by itself."""
    return [*_closed(said, job, "completed", None, now), run_event(lifecycle.completed(run, now, job.total.usage))]


def incomplete(run: Body, job: Job, said: Transcript, now: int, *, reason: LimitReason) -> list[Event]:
    """Return the end of a run that met a limit."""
    ended = run_event(lifecycle.incomplete(run, reason, job.total.usage))
    return [*_closed(said, job, "completed", "max_tokens", now), ended]


def failed(run: Body, job: Job, said: Transcript, now: int, *, error: TandemError) -> list[Event]:
    """Return the end of a run that cannot go on."""
    shown = {"code": _code(error), "message": error.message}
    ended = run_event(lifecycle.failed(run, now, shown, _cut(job, said).total.usage))
    step_error = {**shown, "code": "server_error"} if shown["code"] == "invalid_prompt" else shown
    return [*_closed(said, _cut(job, said), "failed", "run_failed", now, step_error), ended]


def expired(run: Body, job: Job, said: Transcript, now: int) -> list[Event]:
    """Return the end of a run whose time is over."""
    job = _cut(job, said)
    ended = run_event(lifecycle.expired(run, job.total.usage))
    return [*_closed(said, job, "expired", "run_expired", now), ended]


def cancelled(run: Body, job: Job, said: Transcript, now: int) -> list[Event]:
    """Return the end of a run that somebody cancelled; the first event is that it is being cancelled."""
    job, cancelling = _cut(job, said), lifecycle.cancelling(run)
    ended = run_event(lifecycle.cancelled(cancelling, now, job.total.usage))
    return [run_event(cancelling), *_closed(said, job, "cancelled", "run_cancelled", now), ended]


def _cut(job: Job, said: Transcript) -> Job:
    """Return the job with its turn ended where it stands."""
    if job.plan is None or job.turn is not None:
        return job
    return replace(job, turn=Used(len(job.plan.prompt_ids) if said.token_ids else 0, len(said.token_ids)))


def _closed(
    said: Transcript,
    job: Job,
    status: StepEnd,
    reason: IncompleteReason | None,
    now: int,
    error: Body | None = None,
) -> list[Event]:
    events = []
    if said.message is not None:
        message = (
            completed_message(said.message, said.text, said.annotations, now)
            if reason is None
            else incomplete_message(said.message, said.text, said.annotations, reason, now)
        )
        events.append(message_event(message))
    if (step := said.step_with_calls) is not None:
        usage = said.usage_of_step(job.turn) if job.turn is not None else None
        events.append(step_event(ended_step(step, status, now, usage=usage, error=error)))
    return events


def _code(error: TandemError) -> ErrorCode:
    if isinstance(error, Overloaded):
        return "rate_limit_exceeded"
    return "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
