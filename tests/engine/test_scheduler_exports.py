"""What the scheduler says of exported requests: blocks as they become final, and the leases that hold them."""

import pytest

from services.engine.request import FinishReason
from services.engine.schedule import PartialTail
from services.errors import (
    InternalError,
    InvalidRequest,
)
from services.kv.hashes import token_digests
from tests.engine.scheduling import SEED, alone, check_ledger, next_token, spec, world


def test_an_exported_request_names_blocks_as_they_become_final() -> None:
    w = world(max_step_tokens=8)
    w.scheduler.add(spec("a", range(19), export=True))
    w.run()
    finals = w.final_blocks("a")
    assert [(final.first_block, len(final.block_ids)) for final in finals] == [(0, 2), (2, 2), (4, 1)]
    assert len({final.hold for final in finals}) == 3
    digests = [digest for final in finals for digest in final.token_digests]
    assert digests == token_digests(SEED, range(19), 4)
    assert [schedule.partial_tails for schedule in w.schedules if schedule.partial_tails] == [
        [PartialTail(finals[-1].block_ids[0], 3)]
    ]


def test_leases_outlive_the_request_until_each_is_released_once() -> None:
    w = world()
    w.scheduler.add(spec("a", range(10), export=True))
    w.run()
    assert w.scheduler.ledger().leased == 3
    assert "a" in w.tokens
    for final in w.final_blocks("a"):
        w.scheduler.release(final.hold)
        with pytest.raises(InternalError):
            w.scheduler.release(final.hold)
    assert (w.scheduler.ledger().cached, w.scheduler.ledger().is_idle) == (2, True)


def test_leases_outlive_a_cancelled_request() -> None:
    w = world(max_step_tokens=8)
    w.scheduler.add(spec("a", range(19), export=True))
    w.step()
    w.scheduler.cancel("a")
    ledger = check_ledger(w.scheduler)
    assert (ledger.leased, ledger.used) == (2, 0)


@pytest.mark.parametrize(
    ("max_tokens", "stops", "reason"),
    [(4, False, None), (1, False, FinishReason.LENGTH), (4, True, FinishReason.STOP)],
)
def test_an_exported_request_is_over_after_one_token(max_tokens: int, stops: bool, reason: FinishReason | None) -> None:
    stop = frozenset({next_token(range(8))}) if stops else frozenset()
    w = world()
    w.scheduler.add(spec("a", range(8), max_tokens=max_tokens, export=True, stop_token_ids=stop))
    w.run()
    assert [token.finish_reason for token in w.outputs[-1].tokens] == [reason]
    assert w.outputs[-1].stats.num_requests == 1
    assert (w.scheduler.load().num_running, w.scheduler.ledger().used) == (0, 0)


def test_cached_blocks_of_an_exported_request_are_named_and_leased_at_once() -> None:
    w = world()
    w.scheduler.add(spec("a", range(10), max_tokens=1))
    w.run()
    cached = w.scheduler.add(spec("b", range(10), export=True)).cached
    assert cached is not None
    assert (cached.first_block, len(cached.block_ids)) == (0, 2)
    assert list(cached.token_digests) == token_digests(SEED, range(8), 4)
    assert w.scheduler.ledger().leased == 2
    w.run()
    assert [(final.first_block, len(final.block_ids)) for final in w.final_blocks("b")] == [(2, 1)]
    w.scheduler.cancel("b")
    assert w.scheduler.add(spec("c", range(50, 60), export=True)).cached is None


def test_blocks_cached_while_an_exported_request_waited_are_named_in_its_first_step() -> None:
    w = world(max_step_tokens=8)
    w.scheduler.add(spec("a", range(16), max_tokens=1))
    w.scheduler.add(spec("b", range(18), export=True))
    w.step()
    w.step()
    w.step()
    assert w.rows() == [[("a", 8)], [("a", 8)], [("b", 2)]]
    assert [(final.first_block, len(final.block_ids)) for final in w.final_blocks("b")] == [(0, 5)]


def test_blocks_that_were_sent_and_evicted_meanwhile_are_computed_but_not_sent_again() -> None:
    w = world(num_blocks=6, max_running=1)
    w.scheduler.add(spec("old", range(16), max_tokens=1))
    w.run()
    w.scheduler.add(spec("big", [7] * 19, max_tokens=1))
    cached = w.scheduler.add(spec("b", range(18), export=True)).cached
    assert cached is not None
    assert not w.scheduler.has_work  # the lease has the room that the first one needs
    w.scheduler.release(cached.hold)
    w.run()
    assert w.scheduler.ledger().leased == 1
    assert [(final.first_block, len(final.block_ids)) for final in w.final_blocks("b")] == [(4, 1)]
    assert w.tokens["b"] == alone(range(18), 1)


def test_exported_requests_do_not_give_way() -> None:
    w = world(num_blocks=9, max_step_tokens=8, max_mixed_prefill_tokens=4)
    w.scheduler.add(spec("a", [1] * 7, max_tokens=20))
    w.step()
    w.scheduler.add(spec("b", [2] * 24, export=True))
    w.run()
    assert [dict(rows).get("b") for rows in w.rows()] == [None, *[4] * 6]
    assert w.tokens["b"] == alone([2] * 24, 1)
    assert w.scheduler.load().num_waiting == 1  # the older one had to, and waits for the leases
    for final in w.final_blocks("b"):
        w.scheduler.release(final.hold)
    w.run()
    assert w.tokens["a"] == alone([1] * 7, 20)


# -- requests without a next token ------------------------------------------------------------------


def test_a_request_whose_token_cannot_be_chosen_ends_alone_and_gives_its_blocks_back() -> None:
    w = world()
    for request_id in ("a", "b"):
        w.scheduler.add(spec(request_id, range(9), max_tokens=6))
    w.step()
    w.failing["a"] = InvalidRequest("no way on", param="grammar")
    output = w.step()
    (failed,) = output.failures
    assert (failed.request_id, failed.error) == ("a", w.failing["a"])
    assert [token.request_id for token in output.tokens] == ["b"]
    w.run()
    assert w.tokens["b"] == alone(range(9), 6)
    assert check_ledger(w.scheduler).is_idle
    w.scheduler.add(spec("a", range(9)))  # the name is free again
