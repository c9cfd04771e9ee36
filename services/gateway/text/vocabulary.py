"""What each token id is as bytes, partial characters included."""

import json
from typing import Any

_METASPACE = "\u2581"


class Vocabulary:
    """Token ids to bytes, read from a ``tokenizer.json`` without decoding it token by token."""

    def __init__(self, tokenizer_json: str) -> None:
        definition: dict[str, Any] = json.loads(tokenizer_json)
        decoder = json.dumps(definition.get("decoder") or {})
        self._bytes_of_character = _byte_level_characters() if '"ByteLevel"' in decoder else None
        self._has_byte_fallback = '"ByteFallback"' in decoder
        self._pieces = _pieces(definition["model"].get("vocab") or {})
        self._added = {token["id"]: str(token["content"]) for token in definition.get("added_tokens") or ()}

    @property
    def longest_piece(self) -> int:
        """Characters of the longest token; a token that is a piece of a character counts as one."""
        return max(map(len, (*self._pieces.values(), *self._added.values())), default=1)

    def bytes_of(self, token_id: int) -> bytes:
        """Return what the token adds to a text; empty for ids that the tokenizer does not know."""
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._pieces.get(token_id, "")
        if self._bytes_of_character is not None:
            return self._byte_level(piece, self._bytes_of_character)
        if self._has_byte_fallback and len(piece) == 6 and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        return piece.replace(_METASPACE, " ").encode()

    @staticmethod
    def _byte_level(piece: str, bytes_of_character: dict[str, int]) -> bytes:
        return b"".join(
            bytes([bytes_of_character[character]]) if character in bytes_of_character else character.encode()
            for character in piece
        )


def _pieces(vocab: dict[str, int] | list[Any]) -> dict[int, str]:
    if isinstance(vocab, dict):
        return {token_id: piece for piece, token_id in vocab.items()}
    return {token_id: str(entry[0]) for token_id, entry in enumerate(vocab)}


def _byte_level_characters() -> dict[str, int]:
    """Return the byte that each character of GPT-2's byte-level alphabet stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
