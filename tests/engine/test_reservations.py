"""Blocks that a peer writes: how they are reserved, and what becomes of them however the attempt ends."""

from contextlib import nullcontext

import pytest

from services.engine.output import Reservation, SampledToken
from services.engine.request import FinishReason, NewRequest, Outcome
from services.errors import InvalidRequest, NotFound, Overloaded, PoolExhausted
from services.kv.hashes import token_digests
from tests.engine.scheduling import SEED, World, alone, attempt, check_ledger, next_token, spec, world

NOTHING_POSTED, UNKNOWN = Outcome.NOTHING_POSTED, Outcome.UNKNOWN
PROMPT = range(10)


def reserve(w: World, request: NewRequest, epoch: int = 1) -> Reservation:
    return w.scheduler.reserve(request, attempt(request.request_id, epoch))


def arrive(w: World, request: NewRequest, reservation: Reservation, num_arrived: int | None = None) -> None:
    """Write what the peer pushed: the first ``num_arrived`` wanted blocks."""
    token_ids = [*request.prompt_token_ids, *request.resumed_output_token_ids]
    num_wanted = len(reservation.block_table) - reservation.first_wanted
    end = reservation.first_wanted + (num_wanted if num_arrived is None else num_arrived)
    w.write(reservation.block_table, token_ids, reservation.first_wanted * 4, min(end * 4, len(token_ids)))


def start(w: World, request: NewRequest) -> FinishReason | None:
    token = next_token([*request.prompt_token_ids, *request.resumed_output_token_ids])
    w.tokens[request.request_id] = [token]
    return w.scheduler.start(request.request_id, SampledToken(token))


def warm(w: World, num_tokens: int) -> None:
    w.scheduler.add(spec("warm", range(num_tokens), max_tokens=1))
    w.run()


# -- reserving ------------------------------------------------------------------------------------


def test_a_reservation_pins_what_is_cached_and_wants_the_rest() -> None:
    w = world()
    warm(w, 8)
    reservation = reserve(w, spec("a", PROMPT))
    assert (reservation.first_wanted, reservation.num_cached_tokens, len(reservation.block_table)) == (2, 8, 3)
    assert list(reservation.token_digests) == token_digests(SEED, PROMPT, 4)
    ledger = check_ledger(w.scheduler)
    assert (ledger.used, ledger.reserved) == (2, 1)


def test_a_fully_cached_prompt_still_wants_its_last_block() -> None:
    w = world()
    warm(w, 8)
    reservation = reserve(w, spec("a", range(8)))
    assert (reservation.first_wanted, len(reservation.block_table)) == (1, 2)


def test_resumed_output_is_reserved_for_too() -> None:
    reservation = reserve(world(), spec("a", PROMPT, resumed_output_token_ids=(1, 2, 3)))
    assert len(reservation.block_table) == 4


def test_a_reserved_request_is_no_work() -> None:
    w = world()
    reserve(w, spec("a", PROMPT))
    assert not w.scheduler.has_work
    assert w.scheduler.next().is_empty


def test_reservations_stay_below_their_share_of_the_pool() -> None:
    w = world(num_blocks=16, max_reserved_share=0.5)
    reserve(w, spec("a", [1] * 20))
    with pytest.raises(PoolExhausted):
        reserve(w, spec("b", [2] * 16))
    reserve(w, spec("b", [2] * 12))
    assert w.scheduler.ledger().reserved == 8


def test_a_prompt_above_the_share_is_reserved_when_it_is_the_only_one() -> None:
    w = world(num_blocks=16, max_reserved_share=0.3)
    reserve(w, spec("small", [1]))
    with pytest.raises(PoolExhausted):
        reserve(w, spec("large", [2] * 40))
    w.scheduler.cancel("small", outcome=NOTHING_POSTED)
    assert len(reserve(w, spec("large", [2] * 40)).block_table) == 10


def test_the_growth_headroom_of_running_requests_is_kept() -> None:
    w = world(num_blocks=8, max_reserved_share=1.0)
    w.scheduler.add(spec("a", [1] * 4, max_tokens=9))
    w.step()
    with pytest.raises(PoolExhausted):
        reserve(w, spec("b", [2] * 25, max_tokens=1))
    reserve(w, spec("b", [2] * 24, max_tokens=1))
    w.run()
    assert w.tokens["a"][:5] == alone([1] * 4, 5)


def test_what_the_first_waiting_request_needs_is_not_reserved() -> None:
    w = world(num_blocks=8, max_reserved_share=1.0)
    w.scheduler.add(spec("a", [1] * 16))
    with pytest.raises(PoolExhausted):
        reserve(w, spec("b", [2] * 20))
    reserve(w, spec("b", [2] * 16))


def test_one_place_is_kept_for_the_first_waiting_request() -> None:
    w = world(max_running=2)
    w.scheduler.add(spec("a", [1]))
    reserve(w, spec("b", [2]))
    with pytest.raises(Overloaded):
        reserve(w, spec("c", [3]))
    w.step()
    assert w.rows() == [[("a", 1)]]


def test_attempts_are_new_and_belong_to_their_request() -> None:
    w = world()
    with pytest.raises(InvalidRequest):
        w.scheduler.reserve(spec("a", PROMPT), attempt("b"))
    reserve(w, spec("a", PROMPT))
    w.scheduler.cancel("a", outcome=UNKNOWN)
    with pytest.raises(InvalidRequest):
        reserve(w, spec("a", PROMPT))
    with pytest.raises(InvalidRequest):
        w.scheduler.reserve(spec("a", PROMPT, export=True), attempt("a", 2))
    reserve(w, spec("a", PROMPT), epoch=2)


# -- starting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 10])
def test_a_started_request_goes_on_as_if_it_had_been_computed_here(length: int) -> None:
    w = world()
    request = spec("a", range(length), max_tokens=9)
    arrive(w, request, reserve(w, request))
    assert start(w, request) is None
    w.run()
    assert w.rows() == [[("a", 1)]] * 8
    assert w.tokens["a"] == alone(range(length), 9)
    assert w.scheduler.ledger().is_idle
    assert not any(output.chunks for output in w.outputs)


def test_whole_blocks_of_a_started_request_are_cached() -> None:
    w = world()
    request = spec("a", PROMPT)
    arrive(w, request, reserve(w, request))
    start(w, request)
    w.scheduler.add(spec("b", PROMPT, max_tokens=1))
    w.step()
    assert w.rows() == [[("a", 1), ("b", 2)]]


@pytest.mark.parametrize(
    ("max_tokens", "stops", "reason"), [(1, False, FinishReason.LENGTH), (4, True, FinishReason.STOP)]
)
def test_a_request_may_end_with_its_first_token(max_tokens: int, stops: bool, reason: FinishReason) -> None:
    w = world()
    stop = frozenset({next_token(PROMPT)}) if stops else frozenset()
    request = spec("a", PROMPT, max_tokens=max_tokens, stop_token_ids=stop)
    arrive(w, request, reserve(w, request))
    assert start(w, request) is reason
    assert (w.scheduler.ledger().cached, w.scheduler.ledger().is_idle, w.scheduler.has_work) == (2, True, False)


def test_only_reserved_requests_can_be_started_or_left() -> None:
    w = world()
    w.scheduler.add(spec("a", PROMPT))
    for request_id in ("a", "unknown"):
        with pytest.raises(NotFound):
            w.scheduler.start(request_id, SampledToken(1))
        with pytest.raises(NotFound):
            w.scheduler.run_locally(request_id, num_arrived=0, outcome=UNKNOWN)
        with pytest.raises(NotFound):
            w.scheduler.reattempt(request_id, attempt(request_id), num_arrived=0, outcome=UNKNOWN)


# -- trying again ---------------------------------------------------------------------------------


def test_another_attempt_keeps_what_arrived_and_quarantines_the_rest_under_the_old_one() -> None:
    w = world()
    warm(w, 4)
    request = spec("a", range(18))
    first = reserve(w, request)
    arrive(w, request, first, 2)
    second = w.scheduler.reattempt("a", attempt("a", 2), num_arrived=2, outcome=UNKNOWN)
    assert (first.first_wanted, second.first_wanted) == (1, 3)
    assert second.block_table[:3] == first.block_table[:3]
    assert not {*second.block_table[3:]} & {*first.block_table}
    assert second.token_digests == first.token_digests
    ledger = check_ledger(w.scheduler)
    assert (ledger.quarantined, ledger.reserved, ledger.used) == (2, 2, 3)
    arrive(w, request, second)
    start(w, request)
    w.run()
    assert w.tokens["a"] == alone(range(18), 4)
    assert w.scheduler.ledger().quarantined == 2
    w.scheduler.settle(attempt("a", 2))
    assert w.scheduler.ledger().quarantined == 2
    w.scheduler.settle(attempt("a", 1))
    assert check_ledger(w.scheduler).is_idle


def test_blocks_are_free_at_once_when_nothing_was_posted() -> None:
    w = world()
    reserve(w, spec("a", range(18)))
    w.scheduler.reattempt("a", attempt("a", 2), num_arrived=0, outcome=NOTHING_POSTED)
    ledger = check_ledger(w.scheduler)
    assert (ledger.quarantined, ledger.reserved, ledger.free) == (0, 5, 27)


def test_another_attempt_without_room_ends_the_request() -> None:
    w = world(num_blocks=6)
    reservation = reserve(w, spec("a", range(18)))
    arrive(w, spec("a", range(18)), reservation, 1)
    with pytest.raises(PoolExhausted):
        w.scheduler.reattempt("a", attempt("a", 2), num_arrived=1, outcome=UNKNOWN)
    ledger = check_ledger(w.scheduler)
    assert (ledger.quarantined, ledger.cached, ledger.free) == (4, 1, 1)
    w.scheduler.settle(attempt("a"))
    reserve(w, spec("a", range(18)), epoch=3)


@pytest.mark.parametrize(("num_blocks", "is_refused"), [(6, False), (5, True)])
def test_another_attempt_keeps_the_growth_headroom(num_blocks: int, is_refused: bool) -> None:
    w = world(num_blocks=num_blocks, max_reserved_share=1.0)
    w.scheduler.add(spec("b", [1]))
    w.step()
    reserve(w, spec("a", range(8)))
    with pytest.raises(PoolExhausted) if is_refused else nullcontext():
        w.scheduler.reattempt("a", attempt("a", 2), num_arrived=0, outcome=UNKNOWN)
    assert w.scheduler.ledger().reserved == (0 if is_refused else 2)


def test_another_attempt_needs_no_room_when_nothing_was_posted() -> None:
    w = world(num_blocks=6, max_reserved_share=1.0)
    reserve(w, spec("a", range(18), max_tokens=1))
    w.scheduler.add(spec("b", [1]))
    w.step()
    assert w.scheduler.load().num_available_blocks == 0
    w.scheduler.reattempt("a", attempt("a", 2), num_arrived=0, outcome=NOTHING_POSTED)


def test_impossible_reports_change_nothing() -> None:
    w = world()
    reserve(w, spec("a", PROMPT))
    before = check_ledger(w.scheduler)
    for epoch, num_arrived in ((1, 0), (2, 4), (2, -1)):
        with pytest.raises(InvalidRequest):
            w.scheduler.reattempt("a", attempt("a", epoch), num_arrived=num_arrived, outcome=UNKNOWN)
    with pytest.raises(InvalidRequest):
        w.scheduler.run_locally("a", num_arrived=4, outcome=UNKNOWN)
    assert check_ledger(w.scheduler) == before
    w.scheduler.reattempt("a", attempt("a", 2), num_arrived=3, outcome=UNKNOWN)
    w.scheduler.start("a", SampledToken(1))


# -- computing here after all ---------------------------------------------------------------------


@pytest.mark.parametrize(("length", "num_arrived", "num_rows"), [(18, 2, 10), (18, 0, 18), (18, 5, 2), (16, 4, 4)])
def test_what_arrived_whole_is_not_computed_again_but_the_last_token_is(
    length: int, num_arrived: int, num_rows: int
) -> None:
    w = world(max_step_tokens=32)
    request = spec("a", range(length))
    reservation = reserve(w, request)
    arrive(w, request, reservation, num_arrived)
    w.scheduler.run_locally("a", num_arrived=num_arrived, outcome=UNKNOWN)
    output = w.step()
    assert w.rows() == [[("a", num_rows)]]
    assert output.stats.num_cached_tokens == 0
    sequence = w.schedules[0].sequences[0]
    kept = sequence.start // 4
    assert list(sequence.block_table[:kept]) == list(reservation.block_table[:kept])
    w.run()
    assert w.tokens["a"] == alone(range(length), 4)


def test_a_last_block_that_arrived_is_not_overwritten() -> None:
    w = world()
    request = spec("a", range(8))
    reservation = reserve(w, request)
    arrive(w, request, reservation)
    w.scheduler.run_locally("a", num_arrived=2, outcome=UNKNOWN)
    w.step()
    assert w.schedules[0].sequences[0].block_table[1] not in reservation.block_table


def test_a_request_that_lost_its_peer_goes_before_those_that_wait() -> None:
    w = world()
    w.scheduler.add(spec("b", [1] * 5))
    reserve(w, spec("a", range(8)))
    w.scheduler.run_locally("a", num_arrived=0, outcome=UNKNOWN)
    w.step()
    assert w.rows() == [[("a", 8), ("b", 5)]]


def test_a_local_run_needs_no_room_at_once_and_goes_on_when_the_quarantine_ends() -> None:
    w = world(num_blocks=6)
    request = spec("a", range(18))
    arrive(w, request, reserve(w, request), 1)
    w.scheduler.run_locally("a", num_arrived=1, outcome=UNKNOWN)
    assert not w.scheduler.has_work
    w.scheduler.settle(attempt("a"))
    w.run()
    assert w.rows()[0] == [("a", 14)]
    assert w.tokens["a"] == alone(range(18), 4)


# -- cancelling -----------------------------------------------------------------------------------


def test_a_cancelled_reservation_is_quarantined_unless_the_peer_says_otherwise() -> None:
    w = world()
    for outcome, quarantined in ((UNKNOWN, 2), (NOTHING_POSTED, 0)):
        request = spec(outcome.name, [len(outcome.name)] * 10)
        arrive(w, request, reserve(w, request), 1)
        w.scheduler.cancel(outcome.name, num_arrived=1, outcome=outcome)
        assert check_ledger(w.scheduler).quarantined == quarantined
        w.scheduler.settle(attempt(outcome.name))
    ledger = check_ledger(w.scheduler)
    assert (ledger.cached, ledger.is_idle) == (2, True)


def test_settling_an_unknown_attempt_is_ignored() -> None:
    w = world()
    reserve(w, spec("a", PROMPT))
    w.scheduler.settle(attempt("a"))
    w.scheduler.settle(attempt("b", 7))
    assert w.scheduler.ledger().reserved == 3
