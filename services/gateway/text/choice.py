"""The text of one answer: from tokens to what may be shown now."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.gateway.answering.sequence import GeneratedToken
from services.gateway.text.detokenizer import Detokenizer
from services.gateway.text.stop import StopStrings
from services.gateway.text.tokenizer import ModelTokenizer
from services.kv.sampling import SamplingParams


@dataclass(frozen=True)
class TokenText:
    """A token as bytes, with its log probability and its most likely rivals, best first."""

    token_id: int
    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    offset: int
    """Characters of the answer before it."""

    @property
    def text(self) -> str:
        """The token as text; cut characters as U+FFFD."""
        return self.data.decode(errors="replace")


@dataclass(slots=True)  # not frozen: one is made for each token, at four times the cost
class Piece:
    """Text that may be shown, and the tokens that it completes if log probabilities were asked for."""

    text: str = ""
    tokens: tuple[TokenText, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.text and not self.tokens


class ChoiceText:
    """Detokenises one sequence, cuts it at stop strings, and keeps tokens and text in step."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        sampling: SamplingParams,
        stops: Sequence[str],
        *,
        shown: Collection[str] = (),
    ) -> None:
        """``shown`` are special tokens that are text here; others give none."""
        self._vocabulary = tokenizer.vocabulary
        self._detokenizer = Detokenizer(tokenizer.raw, tokenizer.special_ids(shown))
        self._stops = StopStrings(stops)
        self._sampling = sampling
        self._pending: list[tuple[TokenText, int]] = []
        self._num_decoded = 0
        self._num_shown = 0
        self.num_tokens = 0
        self.has_stopped = False
        """Whether a stop string was met; nothing may be pushed afterwards."""

    def push(self, tokens: Sequence[GeneratedToken]) -> Piece:
        """Return what the next tokens allow to show; tokens after a stop string are left out."""
        shown = []
        for token in tokens:
            shown.append(self._push(token))
            if self.has_stopped:
                break
        return self._piece("".join(shown))

    def finish(self) -> Piece:
        """Return what was held back, at the end of the sequence."""
        if self.has_stopped:
            return Piece()
        tail = self._detokenizer.flush()
        self._num_decoded += len(tail)
        return self._piece(self._stopped(tail) + self._stops.flush())

    def _push(self, token: GeneratedToken) -> str:
        self.num_tokens += 1
        if token.token_id in self._sampling.stop_token_ids:
            return ""
        offset = self._num_decoded
        text = self._detokenizer.push(token.token_id)
        self._num_decoded += len(text)
        if token.logprob is not None:
            self._pending.append((self._token_text(token, token.logprob, offset), self._num_decoded))
        return self._stopped(text)

    def _stopped(self, text: str) -> str:
        if self.num_tokens < self._sampling.min_tokens:
            return self._stops.pass_through(text).text
        result = self._stops.push(text)
        self.has_stopped = result.hit
        return result.text

    def _piece(self, text: str) -> Piece:
        self._num_shown += len(text)
        if self.has_stopped:
            ready = [token for token, _ in self._pending if token.offset < self._num_shown]
            self._pending = []
        else:
            ready = [token for token, end in self._pending if end <= self._num_shown]
            self._pending = self._pending[len(ready) :]
        return Piece(text, tuple(ready))

    def _token_text(self, token: GeneratedToken, logprob: float, offset: int) -> TokenText:
        top = tuple((self._vocabulary.bytes_of(token_id), value) for token_id, value in token.top)
        return TokenText(token.token_id, self._vocabulary.bytes_of(token.token_id), logprob, top, offset)
