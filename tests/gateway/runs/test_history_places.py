"""Few conversations are in memory at once, however many runs and responses begin together."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.errors import Overloaded
from services.gateway.responses.history import ContextReader
from services.gateway.runs.history import read_history
from services.gateway.runs.history_places import HistoryPlaces
from services.gateway.runs.model_turns import ModelTurns
from tests.gateway.apis.stored import stored_world
from tests.gateway.runs.client import Caller
from tests.gateway.twins import MODEL

NUM_PLACES, NUM_EACH = 2, 5


@dataclass
class Histories:
    """Counts those that were read and whose prompt is not made."""

    num_open: int = 0
    most: int = 0

    def counting(self, reading: Any) -> Any:
        async def read(*arguments: Any, **options: Any) -> Any:
            self.num_open += 1
            self.most = max(self.most, self.num_open)
            return await reading(*arguments, **options)

        return read

    def ending(self, planning: Any) -> Any:
        async def plan(*arguments: Any) -> Any:
            made = await planning(*arguments)
            self.num_open -= 1
            return made

        return plan


async def test_runs_and_responses_that_begin_together_are_read_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = Histories()
    monkeypatch.setattr("services.gateway.job_services.MAX_HISTORIES", NUM_PLACES)
    monkeypatch.setattr("services.gateway.runs.work.read_history", histories.counting(read_history))
    monkeypatch.setattr(ContextReader, "read", histories.counting(ContextReader.read))
    monkeypatch.setattr(ModelTurns, "plan", histories.ending(ModelTurns.plan))
    async with stored_world(tmp_path) as w:
        caller = Caller(w)
        assistant, threads = await caller.assistant(), [await caller.thread() for _ in range(NUM_EACH)]
        answers = [caller.post("/v1/responses", model=MODEL, input="hello") for _ in range(NUM_EACH)]
        counts = [caller.post("/v1/responses/input_tokens", model=MODEL, input="hello") for _ in range(NUM_EACH)]
        runs = [caller.run(thread, assistant) for thread in threads]
        begun = await asyncio.gather(*runs, *answers, *counts)
        ended = [await caller.settled(thread, run["id"]) for thread, run in zip(threads, begun, strict=False)]

    assert {run["status"] for run in ended} == {"completed"}
    assert {answer["status"] for answer in begun[NUM_EACH : 2 * NUM_EACH]} == {"completed"}
    assert (histories.num_open, histories.most) == (0, NUM_PLACES)


async def test_who_gets_no_place_in_time_is_refused() -> None:
    places = HistoryPlaces(1, timeout_s=0.001)
    async with places.place():
        with pytest.raises(Overloaded):
            async with places.place():
                pass
    async with places.place():  # which is free again
        pass
