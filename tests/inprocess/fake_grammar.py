"""A grammar without text: which token may come next follows from every token before it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.engine.grammar import PARAM, Grammar, out_of_language
from services.errors import InvalidRequest
from tests.inprocess.hash_model import VOCAB_SIZE

DEFINITION = "fake"
DEAD_END = "fake, without an end"
LENGTH = 9
"""Tokens of every whole output."""
END = 0
_SHARE = 5


class FakeGrammar:
    """Allows one token in ``_SHARE``, by a sum over the tokens so far and their places."""

    def __init__(self, *, has_end: bool = True) -> None:
        self._token_ids: list[int] = []
        self._has_end = has_end

    def consume(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if token_id == END or not self._is_allowed()[token_id]:
                raise out_of_language(token_ids)
            self._token_ids.append(token_id)

    def allowed(self) -> bytes:
        return np.packbits(self._is_allowed(), bitorder="little").tobytes()

    def _is_allowed(self) -> npt.NDArray[np.bool_]:
        is_whole = len(self._token_ids) == LENGTH
        state = sum((place + 1) * token_id for place, token_id in enumerate(self._token_ids))
        allowed: npt.NDArray[np.bool_] = (np.arange(VOCAB_SIZE) + state) % _SHARE == (-1 if is_whole else 0)
        allowed[END] = is_whole and self._has_end
        return allowed


class FakeGrammars:
    """Knows one grammar, with and without an end."""

    def compile(self, definition: str) -> Grammar:
        if definition not in (DEFINITION, DEAD_END):
            raise InvalidRequest("There is no such grammar.", param=PARAM)
        return FakeGrammar(has_end=definition == DEFINITION)
