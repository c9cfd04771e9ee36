import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.engine.engine import Engine
from services.engine.output import EngineLoad, FinalBlocks, SampledToken, StepOutput, StepStats, TokenOutput
from services.engine.prefix_cache import CacheChanges
from services.errors import InternalError, InvalidRequest, Overloaded, PoolExhausted, Unavailable
from services.telemetry.clock import ManualClock
from services.worker import engine_thread
from services.worker.engine_thread import EngineThread


class ScriptedScheduler:
    """Has work as long as there are outputs left to return."""

    max_active = 64

    def __init__(self) -> None:
        self.outputs: list[StepOutput | Exception] = []
        self.released: list[int] = []
        self.cancelled: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self.outputs)

    def release(self, hold: int) -> None:
        self.released.append(hold)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def take_cache_changes(self) -> CacheChanges:
        return {}

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, len(self.outputs), 0, 0)


class ScriptedEngine:
    def __init__(self) -> None:
        self.scheduler = ScriptedScheduler()

    def step(self) -> StepOutput:
        output = self.scheduler.outputs.pop(0)
        if isinstance(output, Exception):
            raise output
        return output


@pytest.fixture
async def rig() -> AsyncIterator[Any]:
    engine, steps, defects = ScriptedEngine(), list[StepStats](), list[str]()
    thread = EngineThread(
        cast(Engine, engine),
        clock=ManualClock(),
        seal=lambda final: final,
        on_step=lambda stats, _: steps.append(stats),
        on_cache_change=lambda changes: None,
        on_defect=lambda: defects.append("defect"),
    )
    yield SimpleNamespace(thread=thread, scheduler=engine.scheduler, steps=steps, defects=defects)
    await thread.close(5.0)


def token(request_id: str, token_id: int) -> StepOutput:
    return StepOutput(tokens=(TokenOutput(request_id, SampledToken(token_id)),))


async def run_script(rig: Any, outputs: Sequence[StepOutput | Exception]) -> None:
    await rig.thread.call(lambda scheduler: scheduler.outputs.extend(outputs))


async def test_a_command_returns_its_result_or_raises_its_error(rig: Any) -> None:
    assert await rig.thread.call(lambda scheduler: scheduler.has_work) is False

    def refuse(_: Any) -> None:
        raise PoolExhausted("full")

    with pytest.raises(PoolExhausted):
        await rig.thread.call(refuse)


async def test_events_reach_their_stream_in_order(rig: Any) -> None:
    one, two = rig.thread.subscribe("one"), rig.thread.subscribe("two")
    await run_script(rig, [token("one", 1), token("two", 2), token("one", 3)])
    assert [(await one.next()).token.token_id for _ in range(2)] == [1, 3]
    assert (await two.next()).token.token_id == 2


async def test_a_hold_that_nobody_takes_is_released(rig: Any) -> None:
    def final(request_id: str, hold: int) -> StepOutput:
        return StepOutput(final_blocks=(FinalBlocks(request_id, hold, 0, (1,), (b"",)),))

    rig.thread.subscribe("left")
    stream = rig.thread.subscribe("taken")
    await run_script(rig, [final("gone", 1), final("left", 2), final("taken", 3)])
    await stream.next()
    rig.thread.unsubscribe("left")
    await rig.thread.call(lambda scheduler: None)
    assert sorted(rig.scheduler.released) == [1, 2]


async def test_what_is_unread_is_counted_and_bounded(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "MAX_UNREAD", 4)
    one, two = rig.thread.subscribe("one"), rig.thread.subscribe("two")
    final = StepOutput(final_blocks=(FinalBlocks("two", 7, 0, (1,), (b"",)),))
    await run_script(rig, [token("one", 1), final, token("two", 2)])
    await two_steps_later(rig)
    assert (one.num_unread, two.num_unread, rig.thread.unread.count) == (1, 2, 3)

    await run_script(rig, [token("two", 3), token("two", 4), token("two", 5)])
    await two_steps_later(rig)
    with pytest.raises(Overloaded):
        await two.next()
    assert (await one.next()).token.token_id == 1
    assert rig.thread.unread.count == 0
    assert rig.scheduler.cancelled == ["two"]
    assert rig.scheduler.released == [7]


async def two_steps_later(rig: Any) -> None:
    """What was computed has arrived, and what that made the thread do is done."""
    for _ in range(2):
        while await rig.thread.call(lambda scheduler: scheduler.has_work):
            pass
        await rig.thread.call(lambda scheduler: None)


async def test_a_defect_fails_every_stream_and_every_later_command(rig: Any) -> None:
    stream = rig.thread.subscribe("one")
    await run_script(rig, [RuntimeError("broken kernel")])
    with pytest.raises(InternalError):
        await stream.next()
    with pytest.raises(InternalError):
        await rig.thread.call(lambda scheduler: None)
    rig.thread.post(lambda scheduler: None)
    assert rig.defects == ["defect"]


async def test_a_cancelled_command_still_runs(rig: Any) -> None:
    task = asyncio.ensure_future(rig.thread.call(lambda scheduler: scheduler.release(7)))
    await asyncio.sleep(0)
    task.cancel()
    await rig.thread.call(lambda scheduler: None)
    assert rig.scheduler.released == [7]


async def test_a_second_stream_of_one_request_is_refused_and_the_first_one_undisturbed(rig: Any) -> None:
    stream = rig.thread.subscribe("one")
    with pytest.raises(InvalidRequest):
        rig.thread.subscribe("one")
    await run_script(rig, [token("one", 1)])
    assert (await stream.next()).token.token_id == 1


async def test_the_load_is_that_after_the_last_command_or_step(rig: Any) -> None:
    stream = rig.thread.subscribe("one")
    assert (rig.thread.load.num_queued_tokens, rig.thread.num_steps) == (0, 0)
    queued = await rig.thread.call(lambda scheduler: scheduler.outputs.append(token("one", 1)) or rig.thread.load)
    assert queued.num_queued_tokens == 0
    await stream.next()
    assert (rig.thread.load.num_queued_tokens, rig.thread.num_steps) == (0, 1)


async def test_closing_fails_streams_and_commands_as_unavailable(rig: Any) -> None:
    stream = rig.thread.subscribe("one")
    await rig.thread.close(5.0)
    with pytest.raises(Unavailable):
        await stream.next()
    with pytest.raises(Unavailable):
        await rig.thread.call(lambda scheduler: None)
    assert rig.defects == []


async def test_a_command_with_a_defect_breaks_the_worker(rig: Any) -> None:
    stream = rig.thread.subscribe("one")
    rig.thread.post(lambda scheduler: scheduler.outputs[5])
    with pytest.raises(InternalError):
        await stream.next()
    assert rig.defects == ["defect"]
