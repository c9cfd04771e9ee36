"""Texts as an embedding model takes them: token ids, cut where the model's context ends."""

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from services.errors import ModelRefused
from services.kv.card import ModelCard

MAX_PIECE_CHARACTERS = 50_000
"""Text that is encoded at once; longer texts are cut at the last white space before."""


class EmbeddingTokenizer:
    """The tokenizer of one embedding model; CPU work, safe to call from any thread."""

    def __init__(self, card: ModelCard) -> None:
        """Parse ``card.tokenizer_json``.

        Raises:
            ModelRefused: it is not a tokenizer, or the model's context is too short for any text.
        """
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_str(card.tokenizer_json)
        except Exception as error:  # the library raises no class of its own
            raise ModelRefused(f"The tokenizer of {card.model_name} cannot be read: {error}") from error
        self._tokenizer.encode_special_tokens = True
        self._prefix, self._suffix = _frame(self._tokenizer.encode("a"))
        self.room = card.context_length - len(self._prefix) - len(self._suffix)
        """Tokens of text in one sequence."""
        if self.room < 1:
            raise ModelRefused(f"The context of {card.model_name} has no room for text.")

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of a text, however long, without those that begin and end a sequence."""
        return [token_id for _, piece in self._encoded(text) for token_id in piece.ids]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text and, for each, where in the text it stands: first character and end."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for begin, piece in self._encoded(text):
            ids += piece.ids
            spans += [(begin + first, begin + end) for first, end in piece.offsets]
        return ids, spans

    def sequences(self, token_ids: Sequence[int]) -> list[list[int]]:
        """Return the sequences that cover ``token_ids``: one for each part that has room in the model's context."""
        parts = [token_ids[first : first + self.room] for first in range(0, len(token_ids), self.room)] or [[]]
        return [[*self._prefix, *part, *self._suffix] for part in parts]

    def _encoded(self, text: str) -> list[tuple[int, Encoding]]:
        """Return the pieces of a text, encoded, each with the place where it begins."""
        pieces = _pieces(text)
        encoded = self._tokenizer.encode_batch([piece for _, piece in pieces], add_special_tokens=False)
        return [(begin, each) for (begin, _), each in zip(pieces, encoded, strict=True)]


def _frame(encoding: Encoding) -> tuple[list[int], list[int]]:
    """Return the special tokens before and behind a text."""
    marks, ids = list(encoding.special_tokens_mask), list(encoding.ids)
    if 0 not in marks:
        return [], []
    first, last = marks.index(0), len(marks) - 1 - marks[::-1].index(0)
    return ids[:first], ids[last + 1 :]


def _pieces(text: str) -> list[tuple[int, str]]:
    pieces, begin = [], 0
    while begin < len(text):
        end = min(begin + MAX_PIECE_CHARACTERS, len(text))
        if end < len(text):
            cut = max(text.rfind(mark, begin + 1, end) for mark in (" ", "\n"))
            end = cut if cut > begin else end
        pieces.append((begin, text[begin:end]))
        begin = end
    return pieces
