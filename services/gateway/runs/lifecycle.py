"""The status machine of a run: pure functions from one public object to the next.

    queued -> in_progress -> completed | incomplete | failed | expired
      ^           |    \\
      |           v     `-> cancelling -> cancelled      (from every status that is no end)
      +--- requires_action -> expired
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from services.errors import InternalError
from services.gateway.jobs.events import Body as Body

ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
LimitReason = Literal["max_completion_tokens", "max_prompt_tokens"]

_NEXT: Mapping[str, frozenset[str]] = {
    "queued": frozenset({"in_progress", "incomplete", "failed", "expired", "cancelling"}),
    "in_progress": frozenset({"requires_action", "completed", "incomplete", "failed", "expired", "cancelling"}),
    "requires_action": frozenset({"queued", "failed", "expired", "cancelling"}),
    "cancelling": frozenset({"cancelled"}),
}


def may_become(run: Body, status: str) -> bool:
    """Return whether the status machine allows the step."""
    return status in _NEXT.get(run["status"], frozenset())


def started(run: Body, now: int) -> Body:
    """Return a queued run as one that is worked on."""
    return _moved(run, "in_progress", started_at=now)


def needs_outputs(run: Body, calls: Sequence[Body], usage: Body) -> Body:
    """Return a run that waits for the outputs of function calls; each call has ``id``, ``name``, ``arguments``."""
    shown = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls
    ]
    action = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": shown}}
    return _moved(run, "requires_action", required_action=action, usage=usage)


def requeued(run: Body) -> Body:
    """Return a run whose tool outputs have come."""
    return _moved(run, "queued", required_action=None, usage=None)


def completed(run: Body, now: int, usage: Body) -> Body:
    """Return a run that said all it had to say."""
    return _ended(run, "completed", usage, completed_at=now)


def incomplete(run: Body, reason: LimitReason, usage: Body) -> Body:
    """Return a run that met one of its token limits."""
    return _ended(run, "incomplete", usage, incomplete_details={"reason": reason})


def failed(run: Body, now: int, error: Body, usage: Body) -> Body:
    """Return a run that cannot go on; ``error`` has ``code`` and ``message``."""
    return _ended(run, "failed", usage, failed_at=now, last_error=error)


def expired(run: Body, usage: Body) -> Body:
    """Return a run whose time is over."""
    return _ended(run, "expired", usage)


def cancelling(run: Body) -> Body:
    """Return a run that somebody cancelled."""
    return _moved(run, "cancelling")


def cancelled(run: Body, now: int, usage: Body) -> Body:
    """Return a run that ended because somebody cancelled it."""
    return _ended(run, "cancelled", usage, cancelled_at=now)


def usage_json(prompt_tokens: int, completion_tokens: int, cached_tokens: int, kv: str | None = None) -> Body:
    """Return usage; ``kv`` tells what was found of the thread's earlier KV: hit, partial or expired."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        **({"thread_kv": kv} if kv is not None else {}),
    }


def _ended(run: Body, status: str, usage: Body, **changes: Any) -> Body:
    return _moved(run, status, usage=usage, required_action=None, expires_at=None, **changes)


def _moved(run: Body, status: str, **changes: Any) -> Body:
    if not may_become(run, status):
        raise InternalError(f"A run with status '{run['status']}' cannot become '{status}'.")
    return {**run, "status": status, **changes}
