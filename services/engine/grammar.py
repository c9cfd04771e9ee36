"""What the sampler asks of grammars, and how they follow a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from services.engine.request import NewRequest, Request
from services.errors import InternalError, InvalidRequest


class Grammar(Protocol):
    """Where one output stands in its language. A pure function of the tokens consumed."""

    def consume(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens that were allowed, end tokens left out.

        Raises:
            InternalError: one of them was not.
        """

    def allowed(self) -> torch.Tensor:
        """Return which tokens may come next, bool ``[vocab_size]``, end tokens left out."""

    @property
    def is_complete(self) -> bool:
        """Whether the output may end here."""


class Grammars(Protocol):
    """Reads the definitions of grammars."""

    def start(self, json_schema: str) -> Grammar:
        """Return the beginning of every JSON text that the schema describes.

        Raises:
            InvalidRequest: it is no schema, or says what cannot be enforced.
        """


class NoGrammars:
    """For engines without a tokenizer."""

    def start(self, json_schema: str) -> Grammar:
        """Refuse."""
        raise InvalidRequest("This worker cannot hold an output to a schema.", param="response_format")


@dataclass
class _Followed:
    grammar: Grammar
    num_consumed: int = 0


class Constraints:
    """Follows each constrained request through its output, resumed tokens included, whoever generated them."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._followed: WeakKeyDictionary[Request, _Followed] = WeakKeyDictionary()

    def check(self, spec: NewRequest) -> None:
        """Refuse what ``apply`` could not follow.

        Raises:
            InvalidRequest: the schema cannot be enforced, or the resumed output does not begin what it describes.
        """
        if spec.params.json_schema is None:
            return
        grammar = self._grammars.start(spec.params.json_schema)
        try:
            grammar.consume(spec.resumed_output_token_ids)
        except InternalError as error:
            raise InvalidRequest("The resumed output does not fit its schema.", param="response_format") from error

    def apply(self, scores: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
        """Return ``scores`` (float32 ``[len(requests), vocab_size]``) where only what is allowed is finite."""
        rows = [row for row, request in enumerate(requests) if request.spec.params.json_schema is not None]
        if not rows:
            return scores
        result = scores.clone()
        for row in rows:
            self._mask(result[row], requests[row])
        return result

    def _mask(self, row: torch.Tensor, request: Request) -> None:
        grammar = self._grammar_of(request)
        ends = [end for end in request.spec.params.stop_token_ids if end < row.shape[0]]
        allowed = grammar.allowed()
        allowed[ends] |= grammar.is_complete
        row.masked_fill_(~allowed.to(row.device), -torch.inf)

    def _grammar_of(self, request: Request) -> Grammar:
        followed = self._followed.get(request)
        if followed is None:
            followed = _Followed(self._grammars.start(request.spec.params.json_schema or ""))
            self._followed[request] = followed
        output = request.output_token_ids
        followed.grammar.consume(output[followed.num_consumed :])
        followed.num_consumed = len(output)
        return followed.grammar


def out_of_language(token_ids: Sequence[int]) -> InternalError:
    """Return the error for tokens that a grammar does not allow where they stand."""
    return InternalError(f"The output holds tokens that its grammar does not allow: {list(token_ids)[:8]}.")
