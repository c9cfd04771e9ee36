"""Grammars are compiled in turn, off the event loop, after one trial; what was wrong is remembered."""

import asyncio
import threading
from dataclasses import replace

import pytest

from services.engine.grammar import Grammar
from services.engine.request import NewRequest
from services.errors import InvalidRequest, Overloaded, Unavailable
from services.worker.grammar_compiler import MAX_KNOWN, MAX_TRIALS, MAX_WAITING, GrammarCompiler
from tests.inprocess.client import GREEDY
from tests.inprocess.cluster import until
from tests.inprocess.fake_grammar import DEFINITION, END, FakeGrammar, FakeGrammars


class GatedGrammars:
    """Compiles anything as the gate lets it, and notes on which thread."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.compiled: list[tuple[str, str]] = []
        self.num_running = self.most_at_once = 0

    def compile(self, definition: str) -> Grammar:
        self.num_running += 1
        self.most_at_once = max(self.most_at_once, self.num_running)
        assert self.gate.acquire(timeout=30)
        self.compiled.append((definition, threading.current_thread().name))
        self.num_running -= 1
        return FakeGrammar()


class TrialTwin:
    def __init__(self) -> None:
        self.tried: list[str] = []
        self.error: Exception | None = None
        self.is_closed = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, definition: str) -> None:
        self.tried.append(definition)
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.is_closed = True


def spec(definition: str | None, resumed: tuple[int, ...] = ()) -> NewRequest:
    params = replace(GREEDY, grammar=definition, stop_token_ids=frozenset([END]))
    return NewRequest("r", (1, 2), params, b"", resumed)


async def test_a_request_without_a_grammar_stays_as_it_is() -> None:
    free = spec(None)
    assert await GrammarCompiler(FakeGrammars()).prepared(free) is free


async def test_a_grammar_stands_behind_the_resumed_output() -> None:
    compiler = GrammarCompiler(FakeGrammars())
    fresh = (await compiler.prepared(spec(DEFINITION))).grammar
    resumed = (await compiler.prepared(spec(DEFINITION, (5, 10)))).grammar
    expected = FakeGrammar()
    assert fresh is not None and fresh.allowed() == expected.allowed()
    expected.consume([5, 10])
    assert resumed is not None and resumed.allowed() == expected.allowed()
    assert fresh.allowed() == FakeGrammar().allowed()


async def test_a_resumed_output_has_to_fit() -> None:
    with pytest.raises(InvalidRequest, match="does not fit its grammar"):
        await GrammarCompiler(FakeGrammars()).prepared(spec(DEFINITION, (5, 11)))


async def test_they_are_compiled_one_at_a_time_on_another_thread_each_for_itself() -> None:
    grammars = GatedGrammars()
    compiler = GrammarCompiler(grammars)
    await compiler._require_sound("x")
    askers = [asyncio.create_task(compiler.prepared(spec("x"))) for _ in range(MAX_WAITING)]
    await until(lambda: grammars.num_running == 1)
    with pytest.raises(Overloaded):
        await compiler.prepared(spec("y"))
    grammars.gate.release(MAX_WAITING)
    prepared = await asyncio.gather(*askers)
    assert [definition for definition, _ in grammars.compiled] == ["x"] * MAX_WAITING
    assert threading.current_thread().name not in {thread for _, thread in grammars.compiled}
    assert grammars.most_at_once == 1
    assert len({id(each.grammar) for each in prepared}) == MAX_WAITING


async def test_trials_of_others_hold_up_unknown_grammars_only() -> None:
    trial = TrialTwin()
    compiler = GrammarCompiler(FakeGrammars(), trial)
    await compiler.prepared(spec(DEFINITION))
    trial.gate.clear()
    askers = [asyncio.create_task(compiler.prepared(spec(str(number)))) for number in range(MAX_TRIALS)]
    await until(lambda: trial.tried == [DEFINITION, "0"])
    with pytest.raises(Overloaded):
        await compiler.prepared(spec("unknown"))
    assert (await compiler.prepared(spec(DEFINITION))).grammar is not None
    trial.gate.set()
    refused = await asyncio.gather(*askers, return_exceptions=True)
    assert all(isinstance(error, InvalidRequest) for error in refused)


async def test_who_goes_away_makes_room() -> None:
    grammars = GatedGrammars()
    compiler = GrammarCompiler(grammars)
    for number in range(MAX_WAITING):  # none of them waits for a trial any more
        await compiler._require_sound(str(number))
    askers = [asyncio.create_task(compiler.prepared(spec(str(number)))) for number in range(MAX_WAITING)]
    await until(lambda: grammars.num_running == 1)
    for asker in askers[1:]:
        asker.cancel()
    await until(lambda: all(asker.done() for asker in askers[1:]))
    grammars.gate.release(2)
    assert (await compiler.prepared(spec("z"))).grammar is not None
    assert [definition for definition, _ in grammars.compiled] == ["0", "z"]
    await askers[0]


async def test_each_definition_is_tried_once() -> None:
    trial = TrialTwin()
    compiler = GrammarCompiler(FakeGrammars(), trial)
    for _ in range(3):
        await compiler.prepared(spec(DEFINITION))
    assert trial.tried == [DEFINITION]


async def test_what_is_wrong_is_tried_once_and_never_compiled() -> None:
    trial, grammars = TrialTwin(), GatedGrammars()
    compiler = GrammarCompiler(grammars, trial)
    trial.error = InvalidRequest("too much", param="grammar")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="too much"):
            await compiler.prepared(spec("x"))
    assert trial.tried == ["x"]
    assert not grammars.compiled


async def test_a_trial_that_cannot_run_says_nothing_about_the_grammar() -> None:
    trial = TrialTwin()
    compiler = GrammarCompiler(FakeGrammars(), trial)
    trial.error = Unavailable("not now")
    with pytest.raises(Unavailable):
        await compiler.prepared(spec(DEFINITION))
    trial.error = None
    assert (await compiler.prepared(spec(DEFINITION))).grammar is not None
    await compiler.close()
    assert trial.is_closed


async def test_what_is_known_is_bounded() -> None:
    trial, grammars = TrialTwin(), GatedGrammars()
    compiler = GrammarCompiler(grammars, trial)
    trial.error = InvalidRequest("no", param="grammar")
    for number in (*range(MAX_KNOWN), 0, MAX_KNOWN, 0, 1):
        with pytest.raises(InvalidRequest):
            await compiler.prepared(spec(str(number)))
    assert trial.tried == [str(number) for number in (*range(MAX_KNOWN + 1), 1)]
