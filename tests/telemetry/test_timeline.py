import json

import pytest

from services.errors import IntegrityError, PeerGone
from services.telemetry.clock import ManualClock
from services.telemetry.timeline import MAX_STEPS, Step, Timeline, TimelineRecord


def _steps(timeline: Timeline) -> list[tuple[str, float, float | None]]:
    return [(step.name, step.start_ms, step.duration_ms) for step in timeline.record().steps]


def test_steps_are_timed_from_the_requests_start() -> None:
    clock = ManualClock()
    timeline = Timeline("r1", clock, project="default")
    clock.advance(0.5)
    with timeline.step("encode"):
        clock.advance(0.25)
    with timeline.step("route"):
        pass
    assert _steps(timeline) == [("encode", 500.0, 250.0), ("route", 750.0, 0.0)]
    assert timeline.elapsed_ms == 750.0


def test_a_request_may_have_arrived_before_its_timeline_was_begun() -> None:
    clock = ManualClock(100.0)
    clock.advance(2.0)
    timeline = Timeline("r1", clock, project="default", started_s=100.0)
    timeline.event("seen")
    assert _steps(timeline) == [("seen", 2000.0, 0.0)]
    assert timeline.record().started_at == 100.0


def test_what_is_learnt_during_a_step_is_noted_on_it() -> None:
    timeline = Timeline("r1", ManualClock(), project="default")
    with timeline.step("route", candidates=3) as step:
        step.note(decode="d1", candidates=2)
    assert timeline.record().steps[0].attributes == {"candidates": 2, "decode": "d1"}


def test_a_step_that_fails_names_the_error_and_lets_it_through() -> None:
    timeline = Timeline("r1", ManualClock(), project="default")
    with pytest.raises(PeerGone), timeline.step("generate"):
        raise PeerGone("reset")
    assert timeline.record().steps[0].attributes == {"error": "PeerGone"}
    assert timeline.record().steps[0].duration_ms == 0.0


def test_a_step_that_still_runs_has_no_duration() -> None:
    clock = ManualClock()
    timeline = Timeline("r1", clock, project="default")
    with timeline.step("generate"):
        clock.advance(1)
        assert _steps(timeline) == [("generate", 0.0, None)]


def test_steps_that_others_timed_stand_in_order_of_their_start() -> None:
    clock = ManualClock()
    timeline = Timeline("r1", clock, project="default")
    clock.advance(0.1)
    timeline.event("first_token")
    timeline.add("prefill", start_ms=20.0, duration_ms=60.5, worker="p1")
    assert _steps(timeline) == [("prefill", 20.0, 60.5), ("first_token", 100.0, 0.0)]


def test_a_timeline_survives_json() -> None:
    clock = ManualClock(5.0)
    timeline = Timeline("r1", clock, project="p")
    with timeline.step("route", decode="d1", tries=2, share=0.5, warm=True):
        clock.advance(0.0012345)
    record = TimelineRecord.from_dict(json.loads(json.dumps(timeline.to_dict())))
    assert record == timeline.record()
    assert record == TimelineRecord(
        "r1", "p", 5.0, (Step("route", 0.0, 1.234, {"decode": "d1", "tries": 2, "share": 0.5, "warm": True}),)
    )


@pytest.mark.parametrize("values", [{}, {"steps": [{"name": "x"}]}, {"steps": [], "other": 1}, {"steps": 3}])
def test_something_else_is_not_read_as_a_timeline(values: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        TimelineRecord.from_dict(values)


def test_a_timeline_is_bounded() -> None:
    timeline = Timeline("r1", ManualClock(), project="default")
    for _ in range(MAX_STEPS + 3):
        timeline.event("replay")
    assert len(timeline.record().steps) == MAX_STEPS
    assert timeline.record().num_dropped_steps == 3
