"""Fair queueing as a pure data structure: orders, shares and memory."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.admission.fair_queue import FairQueue

COSTS = st.integers(1, 1000)


def served(queue: FairQueue[int], cost: float = 10.0) -> str:
    """Serve one item; returns its project."""
    head = queue.head()
    assert head is not None
    queue.serve(head, cost)
    return head.project


def filled(**numbers: int) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue()
    for project, number in numbers.items():
        for item in range(number):
            queue.push(project, item)
    return queue


def test_an_empty_queue_has_no_head() -> None:
    assert FairQueue[int]().head() is None


def test_a_newcomer_is_second_to_nobodys_thousand_requests() -> None:
    queue = filled(heavy=1000)
    for _ in range(10):
        assert served(queue) == "heavy"
    queue.push("light", 0)
    assert "light" in [served(queue), served(queue)]


@given(st.lists(COSTS, min_size=50, max_size=50), st.lists(COSTS, min_size=50, max_size=50))
def test_two_backlogged_projects_differ_by_less_than_their_largest_requests(
    first: list[int], second: list[int]
) -> None:
    """Theorem 1 of the paper, for weights of 1."""
    costs, queue, got = {"a": first, "b": second}, filled(a=50, b=50), Counter[str]()
    while queue.num_projects == 2:
        head = queue.head()
        assert head is not None
        cost = costs[head.project][head.item]
        queue.serve(head, cost)
        got[head.project] += cost
        assert abs(got["a"] - got["b"]) <= max(first) + max(second)


def test_weights_are_shares() -> None:
    queue: FairQueue[int] = FairQueue({"a": 3.0})
    for item in range(100):
        queue.push("a", item)
        queue.push("b", item)
    got = Counter(served(queue) for _ in range(80))
    assert got == {"a": 60, "b": 20}


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 10**6)), unique_by=lambda each: each[1]))
def test_within_a_project_priority_comes_first_then_arrival(arrivals: list[tuple[int, int]]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    for arrival in arrivals:
        queue.push("a", arrival, priority=arrival[0])
    order = []
    while (head := queue.head()) is not None:
        queue.serve(head, 1.0)
        order.append(head.item)
    assert order == sorted(arrivals, key=lambda each: each[0])  # stable


def test_priority_takes_nothing_from_other_projects() -> None:
    queue = filled(calm=20)
    for item in range(20):
        queue.push("urgent", item, priority=-100)
    assert Counter(served(queue) for _ in range(20)) == {"calm": 10, "urgent": 10}


def test_a_pause_earns_nothing() -> None:
    queue = filled(a=100, b=1)
    for _ in range(50):
        served(queue)
    for item in range(1, 50):
        queue.push("b", item)
    assert Counter(served(queue) for _ in range(20)) == {"a": 10, "b": 10}


def test_what_was_charged_too_much_comes_back() -> None:
    queue = filled(wordy=100, brief=100)
    got = Counter[str]()
    for _ in range(60):
        head = queue.head()
        assert head is not None
        queue.serve(head, 1000.0 if head.project == "wordy" else 10.0)
        if head.project == "wordy":
            queue.correct("wordy", -990.0)
        got[head.project] += 1
    assert got == {"wordy": 30, "brief": 30}


def test_what_was_charged_too_little_is_charged_later() -> None:
    queue = filled(long=100, short=100)
    got = Counter[str]()
    for _ in range(60):
        project = served(queue)
        got[project] += 1
        if project == "long":
            queue.correct("long", 40.0)
    assert got == {"long": 10, "short": 50}


def test_gifts_are_not_saved_up() -> None:
    queue = filled(a=100)
    for _ in range(50):
        served(queue, 1000.0)
    queue.push("b", 0)
    for _ in range(50):
        queue.correct("a", -990.0)
    assert "b" in [served(queue), served(queue)]


def test_a_parked_project_holds_up_nobody_and_saves_up_nothing() -> None:
    queue = filled(a=50, b=100)
    queue.park("a")
    assert [served(queue) for _ in range(50)] == ["b"] * 50
    assert queue.num_waiting_of("a") == 50
    queue.unpark("a")
    assert Counter(served(queue) for _ in range(20)) == {"a": 10, "b": 10}


def test_with_all_parked_there_is_no_head() -> None:
    queue = filled(a=2)
    queue.park("a")
    assert (queue.head(), len(queue)) == (None, 2)
    queue.unpark("a")
    assert [served(queue), served(queue)] == ["a", "a"]


@pytest.mark.parametrize("is_parked", [False, True])
def test_who_withdraws_is_not_served(is_parked: bool) -> None:
    queue = filled(a=3)
    if is_parked:
        queue.park("a")
    assert queue.withdraw("a", 1)
    assert not queue.withdraw("a", 1)
    assert not queue.withdraw("b", 1)
    queue.unpark("a")
    items = []
    while (head := queue.head()) is not None:
        queue.serve(head, 1.0)
        items.append(head.item)
    assert items == [0, 2]


PROJECTS = st.sampled_from("abcde")
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["push", "serve", "withdraw", "park", "unpark", "correct"]), PROJECTS, COSTS),
    max_size=200,
)


@settings(max_examples=200)
@given(ACTIONS)
def test_whatever_happens_everybody_is_served_once_or_withdrew(actions: list[tuple[str, str, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    waiting: dict[int, str] = {}
    gone: set[int] = set()
    for number, (action, project, cost) in enumerate(actions):
        mine = [item for item, owner in waiting.items() if owner == project]
        if action == "push":
            queue.push(project, number, priority=cost % 3)
            waiting[number] = project
        elif action == "serve" and (head := queue.head()) is not None:
            queue.serve(head, cost)
            assert waiting.pop(head.item) == head.project
            gone.add(head.item)
        elif action == "withdraw" and mine:
            assert queue.withdraw(project, mine[cost % len(mine)])
            gone.add(mine[cost % len(mine)])
            del waiting[mine[cost % len(mine)]]
        elif action == "park" and mine:
            queue.park(project)
        elif action == "unpark":
            queue.unpark(project)
        elif action == "correct":
            queue.correct(project, cost - 500)
        assert len(queue) == len(waiting)
        assert queue.num_projects == len(set(waiting.values()))
    for project in "abcde":
        queue.unpark(project)
    while (head := queue.head()) is not None:
        queue.serve(head, 1.0)
        assert waiting.pop(head.item) == head.project
    assert (waiting, len(queue), queue.num_known) == ({}, 0, 0)


@given(st.lists(st.tuples(PROJECTS, COSTS), min_size=1, max_size=100), st.integers(1, 5))
def test_who_is_new_is_served_after_at_most_one_turn_of_each_other(
    served_so_far: list[tuple[str, int]], n: int
) -> None:
    queue = filled(**dict.fromkeys("abcde"[:n], 200))
    for project, cost in served_so_far:
        served(queue, cost)
        queue.correct(project, -float(cost) / 2)
    queue.push("new", 0)
    assert "new" in [served(queue, 100.0) for _ in range(n + 1)]


def test_nothing_is_remembered_of_projects_that_are_served_at_once() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(1000):
        queue.push(f"project-{number}", 0)
        served(queue)
    assert queue.num_known == 0


def test_little_is_remembered_of_projects_that_left() -> None:
    queue = filled(busy=5000)
    for number in range(2000):
        queue.push(f"project-{number}", 0)
        served(queue)
        served(queue)
    assert queue.num_known < 10
