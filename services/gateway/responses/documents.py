"""A response as the API shows it, from one status to the next: pure functions.

queued -> in_progress -> completed | incomplete | failed | cancelled
"""

from collections.abc import Sequence

from services.errors import InvalidRequest, Overloaded, TandemError
from services.gateway.jobs.events import PAUSES, Body, Event
from services.gateway.runs.job import Used


def response_event(response: Body, name: str | None = None) -> Event:
    """Return the event that tells the new status of a response, or another one of its beginning.

    One that was cancelled ends as ``response.incomplete``: clients know no event for it.
    """
    status = response["status"]
    name = f"response.{name or ('incomplete' if status == 'cancelled' else status)}"
    return Event(name, {"type": name, "response": response}, pauses_job=status in PAUSES)


def started(response: Body) -> Body:
    """Return a response that is worked on."""
    return {**response, "status": "in_progress"}


def completed(response: Body, output: Sequence[Body], used: Used, now: int) -> Body:
    """Return a response that said all it had to say."""
    return {**_ended(response, "completed", output, used), "completed_at": now}


def incomplete(response: Body, output: Sequence[Body], used: Used) -> Body:
    """Return a response that met its limit of tokens."""
    return {
        **_ended(response, "incomplete", output, used),
        "incomplete_details": {"reason": "max_output_tokens"},
    }


def failed(response: Body, output: Sequence[Body], used: Used, error: TandemError) -> Body:
    """Return a response that cannot go on."""
    return {
        **_ended(response, "failed", output, used),
        "error": {"code": _code(error), "message": error.message},
    }


def cancelled(response: Body, output: Sequence[Body], used: Used) -> Body:
    """Return a response that somebody cancelled."""
    return _ended(response, "cancelled", output, used)


def usage_json(used: Used) -> Body:
    """Return usage; ``thread_kv`` tells what was found of the conversation's earlier KV: hit, partial or expired."""
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        **({"thread_kv": used.kv} if used.kv is not None else {}),
    }


def _ended(response: Body, status: str, output: Sequence[Body], used: Used) -> Body:
    return {**response, "status": status, "output": list(output), "usage": usage_json(used)}


def _code(error: TandemError) -> str:
    if isinstance(error, Overloaded):
        return "rate_limit_exceeded"
    return "invalid_prompt" if isinstance(error, InvalidRequest) else "server_error"
