"""The process in which grammars are tried: it answers, and it ends when it takes too long or too much."""

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.errors import InvalidRequest, Unavailable
from services.worker import grammar_child
from services.worker.grammar_trial import GrammarSetup, TrialProcess
from tests.inprocess.cluster import until
from tests.inprocess.real_grammar import CITY, definition

ENDLESS = definition({"allOf": [{"type": "integer", "multipleOf": factor} for factor in (101, 103, 107, 109)]})
"""As many states as the product of the factors; no limit of the library ends it."""


@pytest.fixture(scope="module")
def setup(smollm2: Callable[[str], Path]) -> GrammarSetup:
    return GrammarSetup((smollm2("bfloat16") / "tokenizer.json").read_text(), 49152, (2,))


@asynccontextmanager
async def trial(setup: GrammarSetup, timeout_s: float = 30.0) -> AsyncIterator[TrialProcess]:
    process = TrialProcess(setup, timeout_s=timeout_s)
    try:
        yield process
    finally:
        await process.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_one_process_tries_one_grammar_after_the_other(setup: GrammarSetup) -> None:
    async with trial(setup) as process:
        assert process.pid is None
        await process.run(definition(CITY))
        first = process.pid
        with pytest.raises(InvalidRequest, match=r'Unimplemented keys: \["not"\]'):
            await process.run(definition({"not": {}}))
        await process.run(definition(CITY))
        assert first is not None
        assert process.pid == first
    await until(lambda: not is_alive(first))


async def test_a_grammar_that_takes_too_long_ends_its_process_and_nothing_else(setup: GrammarSetup) -> None:
    async with trial(setup) as process:
        await process.run(definition(CITY))
        first = process.pid
        assert first is not None
        process._timeout_s = 0.3
        with pytest.raises(InvalidRequest, match=r"longer than 0\.3 s to compile") as raised:
            await process.run(ENDLESS)
        assert raised.value.param == "grammar"
        assert not is_alive(first)
        process._timeout_s = 30.0
        await process.run(definition(CITY))
        assert process.pid not in (None, first)


async def test_a_process_that_dies_while_it_compiles_refuses_the_grammar(setup: GrammarSetup) -> None:
    async with trial(setup) as process:
        await process.run(definition(CITY))
        first = process.pid
        assert first is not None
        running = asyncio.create_task(process.run(ENDLESS))
        await until(lambda: process.pid is None)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(InvalidRequest, match="more memory"):
            await running


async def test_who_is_cancelled_ends_the_compilation(setup: GrammarSetup) -> None:
    async with trial(setup) as process:
        await process.run(definition(CITY))
        first = process.pid
        assert first is not None
        running = asyncio.create_task(process.run(ENDLESS))
        await until(lambda: process.pid is None)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not is_alive(first)


async def test_a_process_that_cannot_start_is_nobodys_fault() -> None:
    async with trial(GrammarSetup("no tokenizer", 10, (2,))) as process:
        with pytest.raises(Unavailable, match="did not start"):
            await process.run(definition(CITY))


def test_the_child_answers_line_by_line(setup: GrammarSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_child, "_limit_memory", lambda: None)  # it would be that of the tests
    questions = [vars(setup), definition(CITY), definition({"type": 7}), "start: x"]
    answers = io.BytesIO()
    grammar_child.answer([json.dumps(question).encode() for question in questions], answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [line is None for line in lines] == [True, True, False, False]
    grammar_child.answer([], answers)
