"""Gives each request a grammar of its own, compiled off the event loop and the engine thread."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from services.engine.grammar import PARAM, Grammar, Grammars
from services.engine.request import NewRequest
from services.errors import InternalError, InvalidRequest, Overloaded
from services.worker.grammar_trial import Trial

MAX_KNOWN = 1024
MAX_TRIALS = 16
"""So many may wait that the last one is not given up before its turn."""
MAX_WAITING = 64


class Turns:
    """A queue in order of arrival before what only one may do at a time."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def mine(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it.

        Raises:
            Overloaded: too many wait already.
        """
        if self._num_waiting >= self._max_waiting:
            raise Overloaded(f"{self._num_waiting} grammars wait to be compiled already.", retry_after_s=1.0)
        self._num_waiting += 1
        try:
            async with self._lock:
                yield
        finally:
            self._num_waiting -= 1


class GrammarCompiler:
    """Compiles one grammar at a time, unknown ones after a trial; remembers which ones compiled, and what was wrong.

    What is known does not wait for trials.

    Requests with equal definitions do not share what was compiled: the states that one of them finds would count
    against the others, too.
    """

    def __init__(self, grammars: Grammars, trial: Trial | None = None) -> None:
        """Without a ``trial`` definitions are known to compile in time."""
        self._grammars = grammars
        self._trial = trial
        self._known: OrderedDict[bytes, InvalidRequest | None] = OrderedDict()
        self._trials = Turns(MAX_TRIALS)
        self._compilations = Turns(MAX_WAITING)

    async def prepared(self, spec: NewRequest) -> NewRequest:
        """Return ``spec`` with its grammar, behind the resumed output; without one it stays as it is.

        Raises:
            InvalidRequest: the grammar cannot be enforced, or the resumed output does not begin what it describes.
            Overloaded: too many grammars wait to be compiled.
            Unavailable: grammars cannot be tried now.
        """
        if spec.params.grammar is None:
            return spec
        await self._require_sound(spec.params.grammar)
        async with self._compilations.mine():
            grammar = await asyncio.to_thread(self._compiled, spec.params.grammar, spec.resumed_output_token_ids)
        return replace(spec, grammar=grammar)

    async def close(self) -> None:
        """End the trial."""
        if self._trial is not None:
            await self._trial.close()

    async def _require_sound(self, definition: str) -> None:
        key = hashlib.sha256(definition.encode()).digest()
        if key not in self._known:
            async with self._trials.mine():
                if key not in self._known:
                    self._keep(key, await self._problem(definition))
        self._known.move_to_end(key)
        problem = self._known[key]
        if problem is not None:
            raise InvalidRequest(problem.message, param=problem.param)

    async def _problem(self, definition: str) -> InvalidRequest | None:
        try:
            if self._trial is not None:
                await self._trial.run(definition)
        except InvalidRequest as error:
            return error
        return None

    def _keep(self, key: bytes, problem: InvalidRequest | None) -> None:
        self._known[key] = problem
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _compiled(self, definition: str, resumed: tuple[int, ...]) -> Grammar:
        """Compile and go on behind ``resumed`` (on a thread)."""
        grammar = self._grammars.compile(definition)
        try:
            grammar.consume(resumed)
        except InternalError as error:
            raise InvalidRequest("The resumed output does not fit its grammar.", param=PARAM) from error
        return grammar
