"""Runs from their making to their end."""

from tests.gateway.runs.client import Caller, names, text_of
from tests.gateway.twins import World

WHOLE = [
    *("run.created", "run.queued", "run.in_progress"),
    *("run.step.created", "run.step.in_progress", "message.created", "message.in_progress"),
    *("message.delta", "message.completed", "run.step.completed", "run.completed"),
]


async def test_a_stream_has_exactly_these_events(w: World) -> None:
    caller = Caller(w)
    events = await caller.stream(await caller.thread(), await caller.assistant())

    told = names(events)
    assert told[:7] == WHOLE[:7]
    assert set(told[7:-3]) == {"message.delta"}
    assert told[-3:] == WHOLE[-3:]
    assert text_of(events) == "Paris"
    assert [event.number for event in events] == list(range(1, len(events) + 1))
