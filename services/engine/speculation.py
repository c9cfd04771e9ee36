"""Speculative decoding: a step computes guesses behind the last token, and what it chooses says which were right.

Y. Leviathan, M. Kalman, Y. Matias: Fast Inference from Transformers via Speculative Decoding (ICML 2023), for draws
that are functions of seed and position: a guess is right if it is the very token that would have been chosen there. So
the tokens are the same as without, greedy or sampled; only the number of steps differs.
"""

from collections.abc import Iterable, Sequence

from services.engine.blocks import BlockPool
from services.engine.output import Choice, SampledToken
from services.engine.prompt_lookup import PromptLookup
from services.engine.request import Request
from services.engine.schedule import ScheduledSequence
from services.engine.step import StepPlan
from services.engine.tables import BlockTables, use_of
from services.errors import TandemError

_MAX_ROWS = 16
"""Steps with more rows take longer by about what a guess saves."""


class Speculation:
    """Guesses for requests that generate, where rows and blocks are to spare."""

    def __init__(self, max_tokens: int, pool: BlockPool, tables: BlockTables) -> None:
        """Guess at most ``max_tokens`` for a request in a step; 0 turns it off."""
        self._max_tokens = max_tokens
        self._pool = pool
        self._tables = tables

    def may_guess(self, *, num_rows: int) -> bool:
        """Whether anything is guessed in a step that has ``num_rows`` rows already."""
        return self._max_tokens > 0 and num_rows < _MAX_ROWS

    def plan(self, plan: StepPlan, requests: Iterable[Request], *, num_rows: int) -> None:
        """Let each of ``requests``, which generate, compute its last token and what may follow it.

        Of ``num_rows`` running requests each may need a block for its next token, which is left to it.
        """
        leaving = num_rows
        for request in requests:
            guesses = self.guesses(request, num_rows=num_rows, leaving=leaving)
            num_rows += len(guesses)
            plan.speculate(request, guesses)

    def guesses(self, request: Request, *, num_rows: int, leaving: int) -> Sequence[int]:
        """Return what may follow the last token of ``request`` in a step that has ``num_rows`` rows already.

        Takes blocks for it while ``leaving`` others stay available. What a grammar constrains is not guessed.
        """
        left = request.spec.params.max_tokens - request.num_output_tokens
        limit = min(self._max_tokens, _MAX_ROWS - num_rows, left - 1)
        if limit <= 0 or request.grammar is not None:
            return ()
        request.lookup = request.lookup or PromptLookup()
        guesses = request.lookup.guess(request.token_ids, limit)
        if len(guesses) > self._tables.room(request) and self._pool.num_available > leaving:
            self._tables.extend(request, use_of(request), num_more=len(guesses))
        return guesses[: self._tables.room(request)]

    def confirmed(
        self, request: Request, sequence: ScheduledSequence, tokens: Sequence[Choice]
    ) -> Sequence[SampledToken]:
        """Return those of ``tokens`` that were guessed and do not end the sequence: one more follows them.

        ``tokens`` has what was chosen after each row of ``sequence`` that is sampled from.
        """
        if not sequence.num_guessed or request.lookup is None:
            return ()
        right, ahead = list[SampledToken](), request.behind(())
        for guess, token in zip(sequence.new_token_ids[-sequence.num_guessed :], tokens, strict=False):
            if isinstance(token, TandemError) or token.token_id != guess:
                break
            ahead.token_ids.append(guess)
            if ahead.finish_reason is not None:
                break
            right.append(token)
        request.lookup.judged(sequence.num_guessed, len(right))
        return right
