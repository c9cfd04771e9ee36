from services.transfer.pace import Pace, PaceSettings

SETTINGS = PaceSettings(first_s=1, busy_limit_s=3, idle_limit_s=10, growth=2)


def test_intervals_grow_to_the_limit_of_an_idle_thread() -> None:
    pace = Pace(SETTINGS)
    assert [pace.next_s(is_busy=False) for _ in range(6)] == [1, 2, 4, 8, 10, 10]


def test_a_busy_thread_has_a_lower_limit_at_once() -> None:
    pace = Pace(SETTINGS)
    for _ in range(6):
        pace.next_s(is_busy=False)
    assert [pace.next_s(is_busy=True) for _ in range(2)] == [3, 3]


def test_an_event_starts_over() -> None:
    pace = Pace(SETTINGS)
    for _ in range(6):
        pace.next_s(is_busy=False)
    pace.start_over()
    assert pace.next_s(is_busy=False) == 1
