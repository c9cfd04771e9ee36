"""What each step computes, in which order, within which limits."""

import pytest

from services.engine.output import SampledToken
from services.engine.request import FinishReason
from services.engine.scheduler import SchedulerConfig
from services.errors import (
    ConfigurationError,
    ContextLengthExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    PoolExhausted,
)
from services.kv.hashes import cache_seed
from tests.engine.scheduling import alone, attempt, config, spec, world

# -- chunks and batches ---------------------------------------------------------------------------


def test_chunks_end_on_block_borders_except_the_last() -> None:
    w = world(max_step_tokens=10)
    w.scheduler.add(spec("a", range(19), max_tokens=1))
    w.run()
    assert w.rows() == [[("a", 8)], [("a", 8)], [("a", 3)]]
    assert [[s.needs_logits for s in schedule.sequences] for schedule in w.schedules] == [[False], [False], [True]]
    assert [chunk.num_computed_tokens for output in w.outputs for chunk in output.chunks] == [8, 16, 19]
    assert w.tokens["a"] == alone(range(19), 1)


def test_a_chunk_names_only_the_blocks_that_it_covers() -> None:
    w = world(max_step_tokens=8)
    w.scheduler.add(spec("a", range(19)))
    w.step()
    assert len(w.schedules[0].sequences[0].block_table) == 2


def test_generating_requests_come_first_then_chunks_then_arrivals_in_order() -> None:
    w = world(max_step_tokens=16)
    w.scheduler.add(spec("a", range(3), max_tokens=9))
    w.step()
    for request_id, length in (("b", 20), ("c", 3), ("d", 3)):
        w.scheduler.add(spec(request_id, range(30, 30 + length), max_tokens=9))
    w.step()
    w.step()
    w.step()
    assert w.rows()[1:] == [
        [("a", 1), ("b", 8)],
        [("a", 1), ("b", 8)],
        [("a", 1), ("b", 4), ("c", 3)],
    ]


def test_prompts_are_held_back_only_while_others_generate() -> None:
    w = world(max_step_tokens=32, max_mixed_prefill_tokens=4)
    w.scheduler.add(spec("a", range(4), max_tokens=2))
    w.scheduler.add(spec("b", range(40, 60), max_tokens=1))
    w.run()
    assert w.rows() == [[("a", 4), ("b", 20)], [("a", 1)]]
    w.scheduler.add(spec("c", range(4), max_tokens=3))
    w.step()
    w.scheduler.add(spec("d", range(60, 80), max_tokens=1))
    w.run()
    assert w.rows()[3:] == [[("c", 1), ("d", 4)], [("c", 1), ("d", 4)], [("d", 12)]]


def test_a_prompt_advances_in_every_step_however_many_requests_generate() -> None:
    w = world(max_step_tokens=8, max_running=8, num_blocks=64)
    for number in range(9):
        w.scheduler.add(spec(f"r{number}", [number], max_tokens=30))
    while w.scheduler.load().num_running < 4:
        w.step()
    w.scheduler.cancel("r0")
    w.step()
    assert w.scheduler.load().num_running == 5
    assert config(max_step_tokens=8, max_running=8).max_active == 5


def test_a_request_gets_the_same_tokens_alone_and_among_others() -> None:
    w = world(num_blocks=64)
    prompts = {f"r{number}": [number, *range(number * 3)] for number in range(10)}
    for request_id, prompt in prompts.items():
        w.scheduler.add(spec(request_id, prompt, max_tokens=12))
    w.run()
    assert w.tokens == {request_id: alone(prompt, 12) for request_id, prompt in prompts.items()}
    assert w.scheduler.ledger().is_idle


def test_no_more_than_max_running_requests_hold_blocks() -> None:
    w = world(max_running=2)
    for number in range(3):
        w.scheduler.add(spec(f"r{number}", [number], max_tokens=3))
    w.step()
    assert (w.scheduler.load().num_running, w.scheduler.load().num_waiting) == (2, 1)
    with pytest.raises(Overloaded):
        w.scheduler.reserve(spec("s", [9]), attempt("s"))
    w.run()
    assert len(w.tokens["r2"]) == 3


def test_a_step_without_work_is_empty() -> None:
    w = world()
    assert not w.scheduler.has_work
    assert w.scheduler.next().is_empty
    assert w.step().stats.num_requests == 0


def test_stats_count_rows() -> None:
    w = world()
    w.scheduler.add(spec("a", range(3), max_tokens=4))
    w.step()
    w.scheduler.add(spec("b", range(50, 57), max_tokens=4))
    stats = w.step().stats
    assert (stats.num_requests, stats.num_tokens, stats.num_prompt_tokens) == (2, 8, 7)


def test_load_tells_queues_and_blocks() -> None:
    w = world(max_step_tokens=8)
    w.scheduler.add(spec("a", range(12)))
    w.scheduler.add(spec("b", range(20, 25)))
    w.step()
    load = w.scheduler.load()
    assert (load.num_running, load.num_waiting, load.num_queued_tokens) == (1, 1, 4 + 5)
    assert (load.num_available_blocks, load.num_total_blocks) == (29, 32)


def test_a_commit_needs_a_token_for_each_sampled_request() -> None:
    w = world()
    w.scheduler.add(spec("a", range(3)))
    with pytest.raises(InternalError):
        w.scheduler.commit(w.scheduler.next(), ())


def test_a_prompt_of_which_one_token_is_left_holds_nobody_back() -> None:
    w = world(max_step_tokens=8, max_mixed_prefill_tokens=4)
    w.scheduler.add(spec("a", range(9), max_tokens=1))
    w.scheduler.add(spec("b", range(20, 27), max_tokens=1))
    w.run()
    assert w.rows() == [[("a", 8)], [("a", 1), ("b", 7)]]


# -- prefix cache ---------------------------------------------------------------------------------


def test_a_known_prefix_is_not_computed_again() -> None:
    w = world()
    w.scheduler.add(spec("a", range(10), max_tokens=1))
    w.run()
    assert w.scheduler.add(spec("b", [*range(9), 60, 61], max_tokens=1)).num_cached_tokens == 8
    output = w.step()
    assert w.rows()[1] == [("b", 3)]
    assert output.stats.num_cached_tokens == 8
    assert output.chunks[0].num_cached_tokens == 8


def test_a_fully_cached_prompt_computes_its_last_block_into_one_of_its_own() -> None:
    w = world()
    for request_id in ("a", "b"):
        w.scheduler.add(spec(request_id, range(8), max_tokens=1))
        w.step()
    assert w.rows() == [[("a", 8)], [("b", 4)]]
    tables = [schedule.sequences[0].block_table for schedule in w.schedules]
    assert tables[0][0] == tables[1][0]
    assert tables[0][1] != tables[1][1]
    assert w.tokens["a"] == w.tokens["b"]


def test_the_next_turn_finds_the_blocks_of_the_last_answer() -> None:
    w = world()
    w.scheduler.add(spec("a", range(6), max_tokens=7))
    w.run()
    w.scheduler.add(spec("b", [*range(6), *w.tokens["a"], 1], max_tokens=1))
    w.run()
    assert w.rows()[-1] == [("b", 2)]  # of 14 tokens, since the last token of an answer is not computed


def test_equal_prompts_at_once_are_cached_once() -> None:
    w = world()
    for request_id in ("a", "b"):
        w.scheduler.add(spec(request_id, range(8), max_tokens=1))
    w.run()
    assert w.rows() == [[("a", 8), ("b", 8)]]
    assert w.scheduler.ledger().cached == 2


def test_projects_share_nothing() -> None:
    w = world()
    w.scheduler.add(spec("a", range(8), max_tokens=1))
    w.run()
    other = cache_seed("layout", "another project")
    assert w.scheduler.add(spec("b", range(8), cache_seed=other)).num_cached_tokens == 0


# -- the end of a request -------------------------------------------------------------------------


def test_a_stop_token_ends_a_request_but_not_before_min_tokens() -> None:
    expected = alone(range(5), 6)
    for min_tokens, num_tokens in ((0, 2), (2, 2), (3, 6)):
        w = world()
        stop = frozenset({expected[1]} - {*expected[2:]})
        assert stop
        w.scheduler.add(spec("a", range(5), max_tokens=6, min_tokens=min_tokens, stop_token_ids=stop))
        w.run()
        assert w.tokens["a"] == expected[:num_tokens]
        reason = FinishReason.STOP if num_tokens == 2 else FinishReason.LENGTH
        assert [token.finish_reason for output in w.outputs for token in output.tokens][-1] is reason


def test_resumed_output_counts_towards_the_limit_and_not_as_prompt() -> None:
    expected = alone(range(5), 6)
    w = world()
    w.scheduler.add(spec("a", range(5), max_tokens=6, resumed_output_token_ids=tuple(expected[:4])))
    w.run()
    assert w.tokens["a"] == expected[4:]
    assert w.rows()[0] == [("a", 9)]


def test_cancel_gives_blocks_back_in_every_state() -> None:
    w = world(max_step_tokens=8)
    for number, length in enumerate((3, 20, 20)):
        w.scheduler.add(spec(f"r{number}", [number] * length))
    w.step()
    w.step()
    assert [w.scheduler.load().num_running, w.scheduler.load().num_waiting] == [2, 1]
    for number in range(3):
        w.scheduler.cancel(f"r{number}")
        w.scheduler.cancel(f"r{number}")
    assert w.scheduler.ledger().is_idle
    assert not w.scheduler.has_work
    w.scheduler.add(spec("r0", [1]))


# -- refusals -------------------------------------------------------------------------------------


def test_a_request_beyond_the_context_is_refused_with_the_numbers() -> None:
    w = world(context_length=20)
    for command in (w.scheduler.add, lambda request: w.scheduler.reserve(request, attempt("a"))):
        with pytest.raises(ContextLengthExceeded) as refusal:
            command(spec("a", range(15), max_tokens=6))
        assert refusal.value.message == (
            "This model's maximum context length is 20 tokens. However, you requested 21 tokens "
            "(15 in the messages, 6 in the completion)."
        )


def test_a_request_beyond_the_pool_is_refused_and_told_so() -> None:
    w = world(num_blocks=4)
    w.scheduler.add(spec("a", range(12), max_tokens=4))
    with pytest.raises(ContextLengthExceeded, match=r"The KV pool of this worker holds 16 tokens\.$"):
        w.scheduler.add(spec("b", range(13), max_tokens=4))


def test_malformed_requests_are_refused() -> None:
    w = world()
    w.scheduler.add(spec("a", [1]))
    for malformed in (spec("a", [1]), spec("b", []), spec("b", [1], max_tokens=1, resumed_output_token_ids=(2,))):
        with pytest.raises(InvalidRequest):
            w.scheduler.add(malformed)


def test_a_full_queue_refuses() -> None:
    w = world(max_waiting=1)
    w.scheduler.add(spec("a", [1]))
    with pytest.raises(Overloaded):
        w.scheduler.add(spec("b", [1]))
    w.step()
    w.scheduler.add(spec("b", [1]))


def test_limits_below_one_block_are_refused() -> None:
    for limits in ({"max_step_tokens": 3}, {"max_mixed_prefill_tokens": 3}, {"num_blocks": 0}):
        with pytest.raises(ConfigurationError):
            config(**limits)
    assert SchedulerConfig(num_blocks=64, block_size=16, context_length=2048).max_active == 64


# -- room -----------------------------------------------------------------------------------------


def test_the_newest_request_gives_way_and_goes_on_later_with_its_output() -> None:
    w = world(num_blocks=6)
    prompts = {"a": [1] * 7, "b": [2] * 7}
    for request_id, prompt in prompts.items():
        w.scheduler.add(spec(request_id, prompt, max_tokens=16))
    w.run()
    assert sum(output.stats.num_preempted for output in w.outputs) > 0
    assert w.tokens == {request_id: alone(prompt, 16) for request_id, prompt in prompts.items()}
    ends = [token.request_id for output in w.outputs for token in output.tokens if token.finish_reason]
    assert ends == ["a", "b"]
    assert w.scheduler.ledger().is_idle


def test_a_preempted_request_comes_before_those_that_wait() -> None:
    w = world(num_blocks=6, max_running=2)
    for number in range(3):
        w.scheduler.add(spec(f"r{number}", [number] * 7, max_tokens=12))
    while not w.outputs or not w.outputs[-1].stats.num_preempted:
        w.step()
    assert w.scheduler.load().num_queued_tokens == 7 + len(w.tokens["r1"]) + 7
    w.run()
    ends = [token.request_id for output in w.outputs for token in output.tokens if token.finish_reason]
    assert ends == ["r0", "r1", "r2"]


def test_a_prompt_waits_until_there_is_room_for_all_of_it_and_for_the_growth_of_others() -> None:
    w = world(num_blocks=6)
    w.scheduler.add(spec("a", [1] * 4, max_tokens=4))
    w.scheduler.add(spec("b", [2] * 19, max_tokens=1))
    w.scheduler.add(spec("c", [3], max_tokens=1))
    w.run()
    # b needs 5 of 6 blocks while a holds one and may need another; c does not overtake
    assert w.rows()[0] == [("a", 4)]
    assert w.rows()[4:] == [[("b", 16)], [("b", 3)], [("c", 1)]]
    assert w.tokens["b"] == alone([2] * 19, 1)


def test_the_only_request_fails_when_a_quarantine_takes_its_room() -> None:
    w = world(num_blocks=6)
    w.scheduler.reserve(spec("gone", [9] * 4), attempt("gone"))
    w.scheduler.cancel("gone")
    w.scheduler.add(spec("a", [1] * 7, max_tokens=17))
    w.run()
    (failed,) = w.outputs[-1].failures
    assert failed.request_id == "a"
    assert isinstance(failed.error, PoolExhausted)
    assert w.scheduler.ledger().used == 0
    assert w.tokens["a"] == alone([1] * 7, 14)[: len(w.tokens["a"])]


def test_the_only_request_waits_when_a_reservation_has_its_room() -> None:
    w = world(num_blocks=6)
    w.scheduler.reserve(spec("peer", [9] * 4, max_tokens=1), attempt("peer"))
    w.scheduler.add(spec("a", [1] * 7, max_tokens=17))
    w.run()
    assert (w.scheduler.load().num_running, w.scheduler.load().num_waiting) == (0, 1)
    assert not w.scheduler.has_work
    w.scheduler.start("peer", SampledToken(5))
    w.run()
    assert w.tokens["a"] == alone([1] * 7, 17)


def test_the_only_request_waits_when_a_lease_has_its_room() -> None:
    w = world(num_blocks=6)
    w.scheduler.add(spec("sent", [9] * 4, export=True))
    w.step()
    w.scheduler.add(spec("a", [1] * 7, max_tokens=17))
    w.run()
    assert (w.scheduler.load().num_waiting, w.scheduler.has_work) == (1, False)
    w.scheduler.release(w.final_blocks("sent")[0].hold)
    w.run()
    assert w.tokens["a"] == alone([1] * 7, 17)
