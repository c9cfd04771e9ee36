"""What one sequence says: text, and tool calls where its request allows them."""

from collections.abc import Sequence
from typing import Literal

from services.gateway.answering.sequence import FinishReason, GeneratedToken
from services.gateway.models import ServedModel
from services.gateway.text.choice import ChoiceText, Piece
from services.gateway.tools.extraction import CallExtraction, CallOpening, CallPiece
from services.gateway.tools.format import CallRules
from services.kv.sampling import SamplingParams

OutputPiece = Piece | CallOpening | CallPiece
EndReason = FinishReason | Literal["tool_calls"]


class ChoiceOutput:
    """Turns the tokens of one sequence into what may be shown now."""

    def __init__(
        self, model: ServedModel, sampling: SamplingParams, stops: Sequence[str], calls: CallRules | None
    ) -> None:
        syntax = model.tool_format.syntax
        shown = (*syntax.markers, *syntax.framing) if calls is not None else ()
        self._text = ChoiceText(model.tokenizer, sampling, stops if calls is None else (), shown=shown)
        self._calls = None if calls is None else CallExtraction(model.tool_format, calls, stops)

    @property
    def num_tokens(self) -> int:
        """Tokens that were pushed."""
        return self._text.num_tokens

    @property
    def has_stopped(self) -> bool:
        """Whether nothing may be pushed any more."""
        return self._text.has_stopped if self._calls is None else self._calls.has_stopped

    def push(self, tokens: Sequence[GeneratedToken]) -> Sequence[OutputPiece]:
        """Return what the next tokens allow to show."""
        return self._pieces(self._text.push(tokens))

    def finish(self) -> Sequence[OutputPiece]:
        """Return what was held back, at the end of the sequence."""
        if self._calls is None:
            return self._pieces(self._text.finish())
        last = [] if self.has_stopped else self._calls.push(self._text.finish())
        return [*last, *self._calls.finish()]

    def end_reason(self, reason: FinishReason) -> EndReason:
        """Return why the choice ended, as clients know it: one that calls does not just stop."""
        has_called = self._calls is not None and self._calls.num_calls > 0
        return "tool_calls" if has_called and reason == "stop" else reason

    def _pieces(self, piece: Piece) -> Sequence[OutputPiece]:
        if self._calls is not None:
            return self._calls.push(piece)
        return () if piece.is_empty else (piece,)
