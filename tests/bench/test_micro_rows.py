from bench.rows import cache_events, hashing, routing, scheduler_step, speculation
from services.cluster.registry import Role


def test_each_step_gives_each_running_request_a_token() -> None:
    running = scheduler_step.Running(5)

    outputs = [running.step() for _ in range(2 * scheduler_step.BLOCK_SIZE)]

    assert [len(output.tokens) for output in outputs] == [5] * len(outputs)
    assert all(output.stats.num_prompt_tokens == 0 for output in outputs)


def test_every_whole_block_is_hashed() -> None:
    assert len(hashing.hashes(hashing.prompt(100))) == 100 // hashing.BLOCK_SIZE


def test_a_turn_hashes_what_is_new_and_at_most_a_block_more() -> None:
    assert hashing.count_of_turn(1600, 160) == 176


def test_a_prompt_is_routed_among_workers_of_both_roles_by_what_they_have_cached() -> None:
    route = routing.Fleet(16, 1600).route()

    assert route.decode.role is Role.DECODE
    assert [member.role for member in route.prefill] == [Role.PREFILL] * 3
    assert route.num_uncached_tokens < 1600


def test_blocks_come_and_go() -> None:
    feeds = cache_events.Feeds(3, 64)

    feeds.come()
    names = hashing.hashes(hashing.prompt(64 * hashing.BLOCK_SIZE))
    assert set(feeds.index.overlaps(names)) == {"worker-0"}

    feeds.go()
    assert feeds.num_events == 128
    assert not feeds.index.overlaps(names)


def test_guesses_do_not_change_a_summary() -> None:
    summariser = speculation.Summariser()

    plain, guessed = summariser.answer(0, 24), summariser.answer(8, 24)

    assert len(plain.token_ids) == 24
    assert guessed.token_ids == plain.token_ids


def test_tokens_are_the_same_where_both_answers_have_them() -> None:
    assert speculation.share_of_same([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert speculation.share_of_same([1, 2, 3, 4], [1, 5, 3]) == 0.5


def test_a_rate_or_a_time_comes_out() -> None:
    assert scheduler_step.measure(3, num_steps=2, rounds=1) > 0
    assert hashing.measure(160, rounds=1) > 0
    assert routing.measure(8, 160, rounds=1) > 0
    assert cache_events.measure(2, 16, rounds=1) > 0
