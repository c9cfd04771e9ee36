"""Grammars: which tokens may come next, so that an output is what its request demands."""

from collections.abc import Sequence
from typing import Protocol

from services.errors import InternalError, InvalidRequest

PARAM = "grammar"
"""What errors about a grammar blame; the gateway knows which field of its API asked for it."""


class Grammar(Protocol):
    """Where one output stands in its language: a pure function of the tokens consumed, shared with no other output."""

    def consume(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens that were allowed, end tokens left out.

        Raises:
            InternalError: one of them was not.
            InvalidRequest: following the grammar costs more than one request may.
        """

    def allowed(self) -> bytes:
        """Return which tokens may come next: one bit for each token id, least significant bit first.

        The model's end tokens are among them where, and only where, the output may end.

        Raises:
            InvalidRequest: following the grammar costs more than one request may.
        """


class Grammars(Protocol):
    """Reads the definitions of grammars over one model's tokens."""

    def compile(self, definition: str) -> Grammar:
        """Return the beginning of the language; blocks, callable from any thread.

        Raises:
            InvalidRequest: it is no grammar, or says what cannot be enforced.
        """


class NoGrammars:
    """For engines without a tokenizer."""

    def compile(self, definition: str) -> Grammar:
        """Refuse."""
        raise InvalidRequest("This model cannot be held to a grammar.", param=PARAM)


def out_of_language(token_ids: Sequence[int]) -> InternalError:
    """Return the error for tokens that a grammar does not allow where they stand."""
    return InternalError(f"The output holds tokens that its grammar does not allow: {list(token_ids)[:8]}.")
