"""A grammar without text: which token may come next follows from every token before it."""

from collections.abc import Sequence

import torch

from services.engine.grammar import Grammar, out_of_language
from services.errors import InvalidRequest
from tests.inprocess.hash_model import VOCAB_SIZE

SCHEMA = "fake"
LENGTH = 9
"""Tokens of every whole output."""
END = 0
_SHARE = 5


class FakeGrammar:
    """Allows one token in ``_SHARE``, by a sum over the tokens so far and their places."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []

    def consume(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if not bool(self.allowed()[token_id]):
                raise out_of_language(token_ids)
            self._token_ids.append(token_id)

    def allowed(self) -> torch.Tensor:
        state = sum((place + 1) * token_id for place, token_id in enumerate(self._token_ids))
        allowed = (torch.arange(VOCAB_SIZE) + state) % _SHARE == 0
        allowed[END] = False
        return allowed & (len(self._token_ids) < LENGTH)

    @property
    def is_complete(self) -> bool:
        return len(self._token_ids) == LENGTH


class FakeGrammars:
    """Knows one schema."""

    def start(self, json_schema: str) -> Grammar:
        if json_schema != SCHEMA:
            raise InvalidRequest("There is no such schema.", param="response_format")
        return FakeGrammar()
