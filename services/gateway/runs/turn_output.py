"""From the tokens of a turn to its events; what tokens say does not depend on where they were cut."""

from collections.abc import Iterator, Sequence

from services.gateway.answering.choice_output import ChoiceOutput, OutputPiece
from services.gateway.answering.sequence import FinishReason, GeneratedToken
from services.gateway.runs.turns import Called, FullCall, Said, TurnEnded, TurnPart, Written
from services.gateway.text.choice import Piece
from services.gateway.tools.extraction import CallOpening, CallPiece


class TurnOutput:
    """The output of one turn, which may have been told in part already."""

    def __init__(self, output: ChoiceOutput, end_ids: frozenset[int], known_token_ids: Sequence[int]) -> None:
        """``end_ids`` end a turn; all that ``known_token_ids`` show was told."""
        self._output = output
        self._end_ids = end_ids
        self._calls: list[FullCall] = []
        self._silent: tuple[int, ...] = ()
        self._num_end_tokens = 0
        self.push(known_token_ids)
        self._silent = ()

    @property
    def has_stopped(self) -> bool:
        """Whether the model may say nothing more."""
        return self._output.has_stopped

    def push(self, token_ids: Sequence[int]) -> Said | None:
        """Return what more tokens show; None if they show nothing yet."""
        self._silent += tuple(token_ids)
        for token_id in token_ids:
            self._num_end_tokens = self._num_end_tokens + 1 if token_id in self._end_ids else 0
        parts = tuple(self._parts(self._output.push([GeneratedToken(token_id) for token_id in token_ids])))
        if not parts:
            return None
        shown, self._silent = self._silent, ()
        return Said(shown, parts)

    def ended(self, reason: FinishReason, cached_tokens: int, block_size: int) -> TurnEnded:
        """Return the end of the turn, with what was held back."""
        parts = tuple(self._parts(self._output.finish()))
        return TurnEnded(
            reason, self._silent, parts, tuple(self._calls), self._num_end_tokens, cached_tokens, block_size
        )

    def _parts(self, pieces: Sequence[OutputPiece]) -> Iterator[TurnPart]:
        for piece in pieces:
            match piece:
                case Piece(text):
                    if not self._calls:  # a run's message ends where its calls begin
                        yield Written(text)
                case CallOpening(index, _, name):
                    self._calls.append(FullCall(name, ""))
                    yield Called(index, "", name)
                case CallPiece(index, arguments):
                    call = self._calls[index]
                    self._calls[index] = FullCall(call.name, call.arguments + arguments)
                    yield Called(index, arguments)
