"""Gives requests their grammars: compiled off the event loop and the engine thread, and kept for the next request."""

import asyncio
from collections import OrderedDict
from dataclasses import replace

from services.engine.grammar import PARAM, Grammar, Grammars
from services.engine.request import NewRequest
from services.errors import InternalError, InvalidRequest, Overloaded
from services.worker.grammar_trial import Trial

MAX_KNOWN = 64
MAX_WAITING = 16


class GrammarCompiler:
    """Compiles one grammar at a time, unknown ones after a trial; remembers the last ones and what was wrong."""

    def __init__(self, grammars: Grammars, trial: Trial | None = None) -> None:
        """Without a ``trial`` compiling has to end by itself."""
        self._grammars = grammars
        self._trial = trial
        self._known: OrderedDict[str, Grammar | InvalidRequest] = OrderedDict()
        self._turn = asyncio.Lock()
        self._num_waiting = 0

    async def prepared(self, spec: NewRequest) -> NewRequest:
        """Return ``spec`` with its grammar, behind the resumed output; without one it stays as it is.

        Raises:
            InvalidRequest: the grammar cannot be enforced, or the resumed output does not begin what it describes.
            Overloaded: too many grammars wait to be compiled.
            Unavailable: grammars cannot be tried now.
        """
        if spec.params.grammar is None:
            return spec
        start = await self._start(spec.params.grammar)
        if not spec.resumed_output_token_ids:
            return replace(spec, grammar=start)
        try:
            return replace(spec, grammar=await asyncio.to_thread(_behind, start, spec.resumed_output_token_ids))
        except InternalError as error:
            raise InvalidRequest("The resumed output does not fit its grammar.", param=PARAM) from error

    async def close(self) -> None:
        """End the trial."""
        if self._trial is not None:
            await self._trial.close()

    async def _start(self, definition: str) -> Grammar:
        if definition not in self._known:
            await self._compile(definition)
        self._known.move_to_end(definition)
        known = self._known[definition]
        if isinstance(known, InvalidRequest):
            raise InvalidRequest(known.message, param=known.param)
        return known

    async def _compile(self, definition: str) -> None:
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(f"{self._num_waiting} grammars wait to be compiled already.", retry_after_s=1.0)
        self._num_waiting += 1
        try:
            async with self._turn:
                if definition not in self._known:
                    self._keep(definition, await self._tried(definition))
        finally:
            self._num_waiting -= 1

    async def _tried(self, definition: str) -> Grammar | InvalidRequest:
        try:
            if self._trial is not None:
                await self._trial.run(definition)
            return await asyncio.to_thread(self._grammars.compile, definition)
        except InvalidRequest as error:
            return error

    def _keep(self, definition: str, grammar: Grammar | InvalidRequest) -> None:
        self._known[definition] = grammar
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def _behind(start: Grammar, token_ids: tuple[int, ...]) -> Grammar:
    grammar = start.copy()
    grammar.consume(token_ids)
    return grammar
