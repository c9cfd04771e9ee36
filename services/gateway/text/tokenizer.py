"""Text to token ids with the model's own ``tokenizer.json``; user text never becomes control tokens."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer

from services.errors import ContextLengthExceeded, InvalidRequest, ModelRefused
from services.gateway.text.shield import Markers, Shield
from services.gateway.text.vocabulary import Vocabulary
from services.kv.card import ModelCard

Messages = Sequence[Mapping[str, Any]]
Piece = tuple[str, bool]
"""Text, and whether markers in it are ordinary text."""


class Render(Protocol):
    """From messages and tools to the text of a prompt."""

    def __call__(self, messages: Messages, *, tools: Messages) -> str:
        """Return the text.

        Raises:
            InvalidRequest: there is none for these messages.
        """


class ModelTokenizer:
    """The tokenizer of one model card; encoding is CPU work and safe to call from any thread."""

    def __init__(self, card: ModelCard) -> None:
        """Parse ``card.tokenizer_json``, which takes up to a second.

        Raises:
            ModelRefused: it is not a tokenizer.
        """
        self.raw = _parse(card.tokenizer_json)
        self.vocabulary = Vocabulary(card.tokenizer_json)
        self._literal = _parse(card.tokenizer_json)
        self._literal.encode_special_tokens = True
        self.max_characters = card.context_length * self.vocabulary.longest_piece
        """No longer text fits into the context, whatever its tokens; encoding one would only take time."""
        self._context_length = card.context_length
        self._add_bos = card.add_bos_token
        self._bos_id = self._id_of(card.special_tokens.get("bos_token"))
        self._end_ids = card.eos_token_ids
        added = self.raw.get_added_tokens_decoder()
        special = [token for token in added.values() if token.special]
        reserved = [token for token in added.values() if token.special or _is_written_in(token, card.chat_template)]
        self.special = {token_id: token.content for token_id, token in added.items() if token.special}
        """Special tokens by id."""
        self._special = Markers(special, self._normalized)
        self._reserved = Markers(reserved, self._normalized)
        self._reserved_ids = frozenset(
            token_id for token_id, token in added.items() if token.content in self._reserved.texts
        )

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a whole prompt as its author wrote it; markers in it are control tokens.

        An empty text becomes the token that starts a document.

        Raises:
            ContextLengthExceeded: the text is longer than any prompt can be.
        """
        self._require_room(len(text), "prompt")
        ids = list(self.raw.encode(text).ids)
        if self._add_bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        return ids or [self._bos_id if self._bos_id is not None else self._end_ids[0]]

    def encode_conversation(self, messages: Messages, render: Render, tools: Messages = ()) -> list[int]:
        """Render ``messages`` and ``tools`` and return their ids; only what the template wrote is a control token.

        Without control markers inside the messages the result is that of encoding the rendered text as a
        whole; markers inside them are encoded as ordinary text.

        Raises:
            InvalidRequest: the template refuses the messages.
            ContextLengthExceeded: they are longer than any prompt can be.
        """
        pieces = self.render_conversation(messages, render, tools)
        self._require_room(sum(len(text) for text, _ in pieces), "messages")
        return self.encode_pieces(pieces)

    def render_conversation(self, messages: Messages, render: Render, tools: Messages = ()) -> list[Piece]:
        """Return the rendered text in order, each piece with whether it is to be encoded as ordinary text.

        Raises:
            InvalidRequest: the template refuses the messages.
        """
        shield = Shield()
        rendered = render(
            [self._shielded(shield, message) for message in messages],
            tools=[shield.protect(tool, self._reserved) for tool in tools],
        )
        return shield.pieces(rendered)

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the ids of rendered pieces.

        Raises:
            InvalidRequest: a piece that is ordinary text cannot be encoded as such.
        """
        ids: list[int] = []
        for text, is_literal in pieces:
            ids += self._encode_literally(text) if is_literal else self._encode_marked(text)
        return ids

    def special_ids(self, texts: Collection[str]) -> dict[int, str]:
        """Return those of ``texts`` that are special tokens, by id."""
        return {token_id: text for token_id, text in self.special.items() if text in texts}

    def _require_room(self, num_characters: int, param: str) -> None:
        if num_characters > self.max_characters:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._context_length} tokens. However, your {param} have "
                f"{num_characters} characters, and not more than {self.max_characters} can fit. Please reduce the "
                f"length of the {param}.",
                param=param,
            )

    def _shielded(self, shield: Shield, message: Mapping[str, Any]) -> dict[str, Any]:
        # What the model itself said may hold the structure that it was trained to write (<think>, a tool
        # call), but nothing that starts or ends a turn.
        markers = self._special if message.get("role") == "assistant" else self._reserved
        return {key: shield.protect(value, markers) for key, value in message.items()}

    def _encode_marked(self, text: str) -> list[int]:
        return list(self.raw.encode(text, add_special_tokens=False).ids) if text else []

    def _encode_literally(self, text: str) -> list[int]:
        ids = list(self._literal.encode(text, add_special_tokens=False).ids)
        if self._reserved_ids.isdisjoint(ids):
            return ids
        if len(text) < 2:
            raise InvalidRequest("A message contains text that this model reserves.", param="messages")
        return [token_id for character in text for token_id in self._encode_literally(character)]

    def _id_of(self, text: str | None) -> int | None:
        return None if text is None else self.raw.token_to_id(text)

    def _normalized(self, text: str) -> str:
        normalizer = self.raw.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))


def _is_written_in(token: AddedToken, template: str | None) -> bool:
    return template is not None and bool(token.content.strip()) and token.content in template


def _parse(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises no class of its own
        raise ModelRefused(f"The tokenizer of the model cannot be read: {error}") from error
