"""The tutor of ``examples/`` against a whole ``tandem up``: steps, calls, and how much of each prompt is cached."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.tutor import tutor
from tests.e2e.up import MODEL, Up, running_up

BLOCK = 16
"""Tokens that are cached together."""


def expected_kinds(choice: Any) -> list[str]:
    """What the model turns of a question are, by the tool that was chosen for it."""
    return ["answer"] if choice == "none" else [choice["type"], "answer"]


def assert_covered(turns: Sequence[tutor.ModelTurn]) -> None:
    """Each prompt finds all that was computed before it, but the last block if that is not full."""
    for before, turn in itertools.pairwise(turns):
        known = before.prompt_tokens + before.completion_tokens - 1  # the last token was sampled, not computed
        assert turn.prompt_tokens > known
        assert turn.cached_tokens >= known // BLOCK * BLOCK, (before, turn)


class Moving:
    """Lets the workers that have the conversation leave in the middle of the lesson, before a question."""

    def __init__(self, up: Up, *, before_turn: int) -> None:
        self._up = up
        self._num_left = before_turn
        self.left: list[str] = []

    def say(self, text: str) -> None:
        """Hear what the lesson says."""
        self._num_left -= "Pupil:" in text
        if self._num_left == 0 and not self.left:
            self.left = [self._up.workers(role)[0]["member_id"] for role in ("decode", "prefill")]
            self._up.tandem("drain", *self.left)


@pytest.mark.timeout(500)
def test_the_tutor_of_the_examples(tmp_path: Path) -> None:
    """The second half of the lesson lands on other workers than the first."""
    with running_up(tmp_path, {}, num_embed=1, num_pairs=2) as up:
        moving = Moving(up, before_turn=6)
        turns, reports = tutor.teach(up.caller, MODEL, moving.say)
        [taker] = [worker for worker in up.workers("decode") if worker["member_id"] not in moving.left]

    assert taker["counters"]['tandem_kv_fetches{outcome="arrived"}'] >= 1
    choices = [choice for _, choice in tutor.LESSON]
    assert [turn.status for turn in turns] == ["completed"] * 10
    assert [[each.kind for each in turn.model_turns] for turn in turns] == list(map(expected_kinds, choices))
    assert_covered([each for turn in turns for each in turn.model_turns])
    assert [turn.thread_kv for turn in turns] == [None, *["hit"] * 9]
    for turn, choice in zip(turns, choices, strict=True):
        assert json.loads(turn.answer)["topic"] in tutor.TOPICS
        named = choice["function"]["name"] if choice != "none" and choice["type"] == "function" else None
        assert [call.partition("(")[0] for call in turn.calls] == ([named] if named else [])
        assert len(turn.found) == (choice == tutor.SEARCH)
        assert all(passage in tutor.CHAPTER.read_text() for passage in turn.found)
    assert [report.keys() for report in reports] == [{"topic", "is_correct"}] * 2
