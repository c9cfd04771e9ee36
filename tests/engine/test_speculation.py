"""Guessed tokens: the same answer in fewer steps."""

from typing import Any

import pytest

from services.engine.limits import SchedulerConfig
from services.errors import InvalidRequest
from tests.engine.scheduling import BLOCK, World, alone, check_ledger, config, spec

PERIOD = [5, 9, 2, 7, 3, 8]


class Parrot(World):
    """A world whose model repeats the tokens of ``PERIOD`` for ever, and says 60 after so many."""

    def __init__(self, limits: SchedulerConfig, *, breaks_at: int = 10_000) -> None:
        super().__init__(limits)
        self.breaks_at = breaks_at

    def next_token(self, history: list[int]) -> int:
        return 60 if len(history) == self.breaks_at else PERIOD[len(history) % len(PERIOD)]


def run(num_guesses: int, *, max_tokens: int = 40, breaks_at: int = 10_000, **params: Any) -> Parrot:
    world = Parrot(config(num_speculative_tokens=num_guesses), breaks_at=breaks_at)
    world.scheduler.add(spec("a", PERIOD * 2, max_tokens=max_tokens, **params))
    world.run()
    return world


@pytest.mark.parametrize("breaks_at", [10_000, 13, 17, 18, 30])
def test_the_tokens_are_the_same_in_fewer_steps(breaks_at: int) -> None:
    plain, guessed = run(0, breaks_at=breaks_at), run(8, breaks_at=breaks_at)
    assert guessed.tokens == plain.tokens
    assert len(guessed.rows()) < len(plain.rows()) / 2
    assert check_ledger(guessed.scheduler).is_idle


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_a_sequence_ends_where_it_would_have_ended(max_tokens: int) -> None:
    assert run(8, max_tokens=max_tokens).tokens == run(0, max_tokens=max_tokens).tokens


@pytest.mark.parametrize("stop", PERIOD)
def test_a_guessed_stop_token_ends_it_too(stop: int) -> None:
    plain, guessed = run(0, stop_token_ids=frozenset({stop})), run(8, stop_token_ids=frozenset({stop}))
    assert guessed.tokens == plain.tokens
    [ending] = [token for output in guessed.outputs for token in output.tokens if token.finish_reason is not None]
    assert ending.token.token_id == stop


def test_several_sequences_share_the_rows_that_are_to_spare() -> None:
    world = Parrot(config(num_speculative_tokens=8))
    for index in range(6):
        world.scheduler.add(spec(f"{index}", PERIOD * 2, max_tokens=10))
    world.run()
    assert {tuple(tokens) for tokens in world.tokens.values()} == {tuple((PERIOD * 2)[:10])}
    assert max(sum(rows for _, rows in step) for step in world.rows()) <= 16


def test_guesses_take_no_block_that_others_need() -> None:
    world = Parrot(config(num_speculative_tokens=8, num_blocks=2 * (24 // BLOCK)))
    for name in ("a", "b"):
        world.scheduler.add(spec(name, PERIOD * 2, max_tokens=12))
    world.run()
    assert [len(tokens) for tokens in world.tokens.values()] == [12, 12]
    assert sum(output.stats.num_preempted for output in world.outputs) == 0


def test_a_failure_behind_a_guess_is_the_requests_own() -> None:
    world = Parrot(config(num_speculative_tokens=8))
    world.scheduler.add(spec("a", PERIOD * 2, max_tokens=12))
    world.step()
    world.failing["a"] = InvalidRequest("No.")
    output = world.step()
    assert [failure.request_id for failure in output.failures] == ["a"]
    assert check_ledger(world.scheduler).is_idle


def test_what_was_guessed_is_counted() -> None:
    stats = [output.stats for output in run(8, breaks_at=30).outputs]
    num_guessed, num_right = (
        sum(getattr(each, name) for each in stats) for name in ("num_guessed", "num_guessed_right")
    )
    assert num_guessed > num_right > 20


def test_without_repetition_nothing_changes() -> None:
    world = World(config(num_speculative_tokens=4))
    world.scheduler.add(spec("a", list(range(20)), max_tokens=12))
    world.run()
    assert world.tokens["a"] == alone(list(range(20)), 12)
