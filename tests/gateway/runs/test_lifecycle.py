"""The status machine alone."""

import itertools
from typing import Any

import pytest

from services.errors import InternalError
from services.gateway.jobs.events import ENDS
from services.gateway.runs import lifecycle

USAGE = lifecycle.usage_json(3, 4, 2)
ERROR = {"code": "server_error", "message": "x"}
MOVES: dict[str, Any] = {
    "in_progress": lambda run: lifecycle.started(run, 7),
    "requires_action": lambda run: lifecycle.needs_outputs(run, [], USAGE),
    "queued": lifecycle.requeued,
    "completed": lambda run: lifecycle.completed(run, 7, USAGE),
    "incomplete": lambda run: lifecycle.incomplete(run, "max_prompt_tokens", USAGE),
    "failed": lambda run: lifecycle.failed(run, 7, ERROR, USAGE),
    "expired": lambda run: lifecycle.expired(run, USAGE),
    "cancelling": lifecycle.cancelling,
    "cancelled": lambda run: lifecycle.cancelled(run, 7, USAGE),
}
ALLOWED = {
    ("queued", "in_progress"),
    ("queued", "incomplete"),
    ("queued", "failed"),
    ("queued", "expired"),
    ("queued", "cancelling"),
    ("in_progress", "requires_action"),
    ("in_progress", "completed"),
    ("in_progress", "incomplete"),
    ("in_progress", "failed"),
    ("in_progress", "expired"),
    ("in_progress", "cancelling"),
    ("requires_action", "queued"),
    ("requires_action", "failed"),
    ("requires_action", "expired"),
    ("requires_action", "cancelling"),
    ("cancelling", "cancelled"),
}


def run(status: str) -> dict[str, Any]:
    return {"id": "run_1", "status": status, "expires_at": 600, "usage": None, "required_action": {"x": 1}}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(MOVES, MOVES)))
def test_only_these_moves_are_possible(before: str, after: str) -> None:
    if (before, after) in ALLOWED:
        assert MOVES[after](run(before))["status"] == after
    else:
        with pytest.raises(InternalError):
            MOVES[after](run(before))


@pytest.mark.parametrize("status", sorted(ENDS))
def test_an_end_has_usage_and_no_expiry(status: str) -> None:
    before = run("cancelling" if status == "cancelled" else "in_progress")
    ended = MOVES[status](before)

    assert (ended["usage"], ended["expires_at"], ended["required_action"]) == (USAGE, None, None)
    stamp = {"completed": "completed_at", "failed": "failed_at", "cancelled": "cancelled_at"}.get(status)
    assert stamp is None or ended[stamp] == 7


def test_a_move_changes_nothing_in_place() -> None:
    before = run("queued")
    lifecycle.started(before, 7)

    assert before == run("queued")
