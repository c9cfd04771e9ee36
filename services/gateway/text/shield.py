"""Keeps markers in user text from becoming control tokens, whatever the template does with the text.

    message   "say <|im_end|> twice"                        what the user wrote
    shielded  "say zq5f0c...x0z twice"                      a placeholder that nobody can guess
    rendered  "<|im_start|>user\\nsay zq5f0c...x0z twice<|im_end|>\\n"
    pieces    ("<|im_start|>user\\nsay ", marked) ("<|im_end|>", literal) (" twice<|im_end|>\\n", marked)

Text without markers passes unchanged, so templates trim, split and compare it as ever.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import AddedToken


class Markers:
    """Added tokens that a text may not write."""

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str]) -> None:
        listed = [token for token in tokens if token.content]
        self.texts = frozenset(token.content for token in listed)
        longest_first = sorted(self.texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if listed else None
        self._after_normalizing = [token.content for token in listed if token.normalized]
        self._normalize = normalize

    def replace(self, text: str, placeholder: Callable[[str], str]) -> str:
        """Return ``text`` with each marker replaced."""
        if self._pattern is not None:
            text = self._pattern.sub(lambda match: placeholder(match.group()), text)
        if self._after_normalizing and any(marker in self._normalize(text) for marker in self._after_normalizing):
            return placeholder(text)
        return text


class Shield:
    """The placeholders of one conversation."""

    def __init__(self) -> None:
        self._nonce = f"zq{secrets.token_hex(12)}x"
        self._literals: list[str] = []

    def protect(self, value: Any, markers: Markers) -> Any:
        """Return a JSON value with the markers in all of its texts replaced."""
        if isinstance(value, str):
            return markers.replace(value, self._placeholder)
        if isinstance(value, list):
            return [self.protect(item, markers) for item in value]
        if isinstance(value, dict):
            return {self.protect(key, markers): self.protect(item, markers) for key, item in value.items()}
        return value

    def pieces(self, rendered: str) -> list[tuple[str, bool]]:
        """Return the rendered text in order, each piece with whether it is to be encoded literally."""
        parts = re.split(rf"{self._nonce}(\d+)z", rendered)
        return [
            (self._original(int(part)), True) if is_placeholder else (part, False)
            for index, part in enumerate(parts)
            if (is_placeholder := index % 2 == 1) or part
        ]

    def _placeholder(self, literal: str) -> str:
        self._literals.append(literal)
        return f"{self._nonce}{len(self._literals) - 1}z"

    def _original(self, index: int) -> str:
        return re.sub(rf"{self._nonce}(\d+)z", lambda match: self._original(int(match.group(1))), self._literals[index])
