import asyncio

import pytest

from services.errors import Overloaded, PeerGone
from services.gateway.admission.capacity import PromptWindow
from services.gateway.admission.ledger import MemoryShareLedger
from services.gateway.admission.limits import Demand
from services.telemetry.clock import ManualClock
from tests.gateway.admission.visitors import Door, Visitor, Workers, all_leave, inside, settle


async def test_requests_wait_in_order_when_all_turns_are_taken() -> None:
    door = Door()
    visitors = [door.visitor() for _ in range(4)]
    assert await inside(*visitors) == [True, True, False, False]
    await visitors[1].leave()
    assert await inside(*visitors) == [True, False, True, False]
    await all_leave(door, *visitors)


async def test_one_project_cannot_delay_another_by_more_than_a_turn() -> None:
    door = Door(max_requests=1, max_waiting=2000, max_project_waiting=2000)
    crowd = [door.visitor("crowd") for _ in range(1000)]
    await crowd[0].leave()
    single = door.visitor("single")
    assert await inside(crowd[1], single) == [True, False]
    await crowd[1].leave()
    if not single.is_in:
        await crowd[2].leave()
    assert await inside(single) == [True]
    await all_leave(door, single, *crowd)


async def test_two_projects_share_turns_whatever_they_send() -> None:
    door = Door(max_requests=1, max_waiting=200)
    crowd, few = [door.visitor("crowd") for _ in range(90)], [door.visitor("few") for _ in range(10)]
    await settle()
    order: list[str] = []
    while len(order) < 20:
        current = next(visitor for visitor in (*crowd, *few) if visitor.is_in)
        order.append("crowd" if current in crowd else "few")
        await current.leave()
    assert order.count("few") == 10
    await all_leave(door, *crowd, *few)


async def test_projects_are_charged_for_what_they_really_take() -> None:
    door = Door(max_requests=1, max_waiting=200)
    modest = [door.visitor("modest", 1000) for _ in range(40)]
    greedy = [door.visitor("greedy", 1000) for _ in range(40)]
    await settle()
    took = {"modest": 0, "greedy": 0}
    for _ in range(44):
        current = next(visitor for visitor in (*modest, *greedy) if visitor.is_in)
        name, num_tokens = ("modest", 9) if current in modest else ("greedy", 99)
        assert current.turn is not None
        current.turn.generated(num_tokens)
        took[name] += 1 + num_tokens
        await current.leave()
    assert took["greedy"] / 3 < took["modest"] < took["greedy"] * 3  # with equal turns it would be a tenth
    await all_leave(door, *modest, *greedy)


async def test_priority_orders_the_requests_of_one_project_only() -> None:
    door = Door(max_requests=1)
    first = door.visitor("a")
    await settle()
    late, urgent = door.visitor("a", priority=5), door.visitor("a", priority=-5)
    other = door.visitor("b", priority=100)
    await first.leave()
    assert await inside(late, urgent, other) == [False, False, True]
    await other.leave()
    assert await inside(late, urgent) == [False, True]
    await all_leave(door, late, urgent)


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    door = Door(max_waiting=1)
    visitors = [door.visitor() for _ in range(3)]
    await settle()
    refused = door.visitor("other")
    with pytest.raises(Overloaded) as caught:
        await refused.task
    with pytest.raises(Overloaded):
        door.admission.require_room("other")
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60
    assert door.refusals() == {"queue_full": 2}
    await all_leave(door, *visitors)


async def test_a_project_cannot_fill_the_waiting_room() -> None:
    door = Door(max_requests=1, max_waiting=10, max_project_waiting=3)
    crowd = [door.visitor("crowd") for _ in range(4)]
    await settle()
    refused = door.visitor("crowd")
    with pytest.raises(Overloaded, match="this project"):
        await refused.task
    with pytest.raises(Overloaded, match="this project"):
        door.admission.require_room("crowd")
    door.admission.require_room("single")
    single = door.visitor("single")
    await settle()
    assert door.counts == (1, 4)
    assert door.refusals() == {"project_queue_full": 2}
    await all_leave(door, single, *crowd)


async def test_without_a_queue_who_can_come_in_comes_in() -> None:
    door = Door(max_waiting=0, max_project_waiting=0)
    door.admission.require_room("default")
    visitors = [door.visitor(), door.visitor()]
    assert await inside(*visitors) == [True, True]
    with pytest.raises(Overloaded):
        await door.visitor().task
    await all_leave(door, *visitors)


async def test_waiting_ends_at_its_deadline() -> None:
    door = Door(max_requests=1, max_wait_s=0.01)
    visitor = door.visitor()
    await settle()
    with pytest.raises(Overloaded):
        await door.visitor().task
    assert (door.counts, door.refusals()) == ((1, 0), {"timeout": 1})
    await all_leave(door, visitor)


async def test_the_time_to_come_back_grows_with_the_queue_and_has_bounds() -> None:
    door = Door(max_requests=1, max_waiting=50)
    told = []
    visitors: list[Visitor] = []
    for num_more in (1, 5, 25, 20):
        visitors += [door.visitor() for _ in range(num_more)]
        await settle()
        told.append(door.admission._retry_after_s("default"))
    assert told == sorted(told)
    assert (told[0], told[-1]) == (1.0, 51.0)
    door.admission._service_s = 1e6
    assert door.admission._retry_after_s("default") == 60.0
    await all_leave(door, *visitors)


async def test_tokens_are_bounded_and_nobody_overtakes() -> None:
    door = Door(max_requests=10, max_tokens=100)
    large, waiting, small = door.visitor(num_tokens=80), door.visitor(num_tokens=50), door.visitor(num_tokens=1)
    assert await inside(large, waiting, small) == [True, False, False]
    await large.leave()
    assert await inside(waiting, small) == [True, True]
    await all_leave(door, waiting, small)


async def test_a_request_larger_than_the_limit_runs_alone() -> None:
    door = Door(max_tokens=100)
    large, small = door.visitor(num_tokens=10_000), door.visitor(num_tokens=1)
    assert await inside(large, small) == [True, False]
    await all_leave(door, large, small)


async def test_a_project_at_its_own_limit_holds_up_nobody_else() -> None:
    door = Door(max_requests=10, max_project_tokens=100)
    first, second, other = door.visitor("a", 80), door.visitor("a", 80), door.visitor("b", 80)
    assert await inside(first, second, other) == [True, False, True]
    await first.leave()
    assert await inside(second) == [True]
    await all_leave(door, second, other)


async def test_workers_run_no_more_sequences_than_they_told() -> None:
    door = Door(Workers({"model": 4}), max_requests=10)
    wide, narrow, third = door.visitor(num_sequences=3), door.visitor(), door.visitor()
    assert await inside(wide, narrow, third) == [True, True, False]
    await narrow.leave()
    assert await inside(third) == [True]
    await all_leave(door, wide, third)


async def test_prompts_wait_for_their_turn_while_prefill_workers_have_enough_before_them() -> None:
    door = Door(Workers(window=PromptWindow(100, 40)), max_requests=10)
    visitors = [door.visitor(num_prompt_tokens=number) for number in (30, 1000, 40, 10, 10)]
    assert await inside(*visitors) == [True, True, False, False, False]  # the large one counts for 40
    assert visitors[1].turn is not None
    visitors[1].turn.prefilled()
    assert await inside(*visitors) == [True] * 5
    await visitors[4].leave()  # without a first token
    late = [door.visitor(num_prompt_tokens=20), door.visitor(num_prompt_tokens=1)]
    assert await inside(*late) == [True, False]
    await all_leave(door, *late, *visitors)
    await door.shares.exchange()
    assert door.shares.num_budgets == 0


async def test_each_sequence_of_a_request_has_a_prompt() -> None:
    door = Door(Workers(window=PromptWindow(100, 100)), max_requests=10)
    wide, other = door.visitor(num_prompt_tokens=90, num_sequences=3), door.visitor(num_prompt_tokens=40)
    assert await inside(wide, other) == [True, False]
    assert wide.turn is not None
    wide.turn.prefilled()
    assert await inside(other) == [True]
    await all_leave(door, wide, other)


async def test_busy_workers_of_one_pool_hold_up_no_other_pool() -> None:
    door = Door(Workers({"model": 1, "other": 1}), max_requests=10)
    first, second, other = door.visitor(), door.visitor(), door.visitor(pool="other")
    assert await inside(first, second, other) == [True, False, True]
    await all_leave(door, first, second, other)


async def test_pools_take_turns_at_a_limit_that_all_share() -> None:
    door = Door(max_requests=1)
    first = [door.visitor(pool="one") for _ in range(4)]
    second = [door.visitor(pool="two") for _ in range(2)]
    await settle()
    order = []
    for _ in range(5):
        current = next(visitor for visitor in (*first, *second) if visitor.is_in)
        order.append("one" if current in first else "two")
        await current.leave()
    assert order[1:] in (["one", "two"] * 2, ["two", "one"] * 2)
    await all_leave(door, *first, *second)


async def test_who_waits_is_let_in_when_a_worker_joins_or_all_are_gone() -> None:
    workers = Workers({"model": 1})
    door = Door(workers, max_requests=10)
    visitors = [door.visitor() for _ in range(4)]
    await settle()
    workers.sequences["model"] = 2
    await door.shares.exchange()
    assert await inside(*visitors) == [True, True, False, False]
    del workers.sequences["model"]  # routing answers with 503
    await door.shares.exchange()
    assert await inside(*visitors) == [True] * 4
    await all_leave(door, *visitors)


async def test_two_gateways_share_one_limit() -> None:
    ledger = MemoryShareLedger(ManualClock())
    first, second = (Door(ledger=ledger, max_requests=100, max_tokens=100) for _ in range(2))
    early = [first.visitor() for _ in range(30)]
    await settle()
    await first.shares.exchange()
    assert first.counts == (10, 20)
    late = [second.visitor()]  # alone on its gateway
    await settle()
    await second.shares.exchange()
    late += [second.visitor() for _ in range(19)]
    await settle()
    assert second.counts == (1, 19)
    for visitor in early[:6]:  # six of its ten end, and it may have half
        await visitor.leave()
    await first.shares.exchange()
    for visitor in early[6:16]:
        await visitor.leave()
        await first.shares.exchange()
        await second.shares.exchange()
    await settle()
    assert (first.admission.num_running, second.admission.num_running) == (5, 5)
    await all_leave(first, *early)
    await second.shares.exchange()
    await all_leave(second, *late)


async def test_a_parked_project_comes_in_when_its_share_grows() -> None:
    ledger = MemoryShareLedger(ManualClock())
    first, second = (Door(ledger=ledger, max_requests=100, max_project_tokens=100) for _ in range(2))
    early = [first.visitor() for _ in range(10)]
    await settle()
    await first.shares.exchange()
    late = [second.visitor()]
    await settle()
    await second.shares.exchange()
    late.append(second.visitor())
    assert await inside(*late) == [True, False]
    await all_leave(first, *early)
    await first.shares.exchange()
    await second.shares.exchange()
    assert await inside(*late) == [True, True]
    await all_leave(second, *late)


async def test_who_gives_up_leaves_no_gap() -> None:
    door = Door(max_requests=1)
    inside_one, impatient, next_one = door.visitor(), door.visitor(), door.visitor()
    await settle()
    impatient.task.cancel()
    await settle()
    await inside_one.leave()
    assert next_one.is_in
    await all_leave(door, next_one)


async def test_a_turn_that_comes_while_giving_up_is_passed_on() -> None:
    door = Door(max_requests=1)
    first, unlucky, next_one = door.visitor(), door.visitor(), door.visitor()
    await settle()
    first.tell_to_leave()
    await first.task  # the turn is given, but its holder has not run yet
    unlucky.task.cancel()
    await settle()
    assert next_one.is_in
    await all_leave(door, next_one)


async def test_who_gave_up_in_this_very_moment_gets_no_turn() -> None:
    door = Door(max_requests=1)
    first, unlucky, next_one = door.visitor(), door.visitor(), door.visitor()
    await settle()
    unlucky.task.cancel()
    first.tell_to_leave()
    await first.task
    await settle()
    assert next_one.is_in
    await all_leave(door, next_one)


@pytest.mark.parametrize("error", [Overloaded("full", retry_after_s=3), PeerGone("killed")])
async def test_a_failure_gives_the_turn_back(error: Exception) -> None:
    door = Door(max_requests=1)
    with pytest.raises(type(error)):
        async with door.admission.admitted(Demand("default", "model", 1, 9)):
            raise error
    assert door.counts == (0, 0)
    assert door.refusals() == ({"workers_full": 1} if isinstance(error, Overloaded) else {})


async def test_waiting_is_measured() -> None:
    door = Door(max_requests=1)
    first, second = door.visitor(), door.visitor()
    await settle()
    door.clock.advance(7.0)
    await first.leave()
    await all_leave(door, second)
    assert door.registry.get_sample_value("tandem_admission_wait_seconds_count") == 2
    assert door.registry.get_sample_value("tandem_admission_wait_seconds_sum") == 7.0


async def test_nothing_is_left_of_ten_thousand_requests_that_came_and_went() -> None:
    door = Door(max_requests=4, max_waiting=10, max_project_waiting=10)
    for round_number in range(100):
        visitors = [door.visitor(f"project-{round_number}-{each % 7}") for each in range(100)]
        await settle()
        for visitor in visitors:
            visitor.tell_to_leave()
        await asyncio.gather(*(visitor.task for visitor in visitors), return_exceptions=True)
    await door.shares.exchange()
    assert door.counts == (0, 0)
    assert (door.shares.num_budgets, len(door.admission._queues), len(door.admission._waiting_of)) == (0, 0, 0)
