"""What grammars of tool calls are made of: Lark, as llguidance reads it (docs/syntax.md there)."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.gateway.tools.format import CallSyntax

ANY = r"/(.|\n)*/"
"""Any text as a terminal."""


@dataclass(frozen=True)
class SpecialTokens:
    """A model's tokens that are no text."""

    by_id: Mapping[int, str]
    end_ids: frozenset[int]


class Terminals:
    """Writes texts as terminals; of the markers of a format, special tokens of the model are those tokens."""

    def __init__(self, syntax: CallSyntax, tokens: SpecialTokens) -> None:
        markers = (*syntax.markers, *syntax.framing)
        self._tokens = tokens
        self._framing = syntax.framing
        self._ids = {text: token_id for token_id, text in tokens.by_id.items() if text in markers}

    def is_token(self, text: str) -> bool:
        """Return whether a text is one special token."""
        return text in self._ids

    def text(self, text: str) -> str:
        """Return a text."""
        if not self._ids:
            return quoted(text)
        pattern = "|".join(re.escape(marker) for marker in sorted(self._ids, key=len, reverse=True))
        parts = re.split(f"({pattern})", text)
        return joined(*(f"<[{self._ids[part]}]>" if part in self._ids else quoted(part) for part in parts))

    def others(self, *, without: str) -> str:
        """Return the special tokens that free text may hold: all but ``without`` and those of calls."""
        free = {*self._framing} - {without}
        taken = self._tokens.end_ids | {each for text, each in self._ids.items() if text not in free}
        others = ",".join(_ranges(sorted(self._tokens.by_id.keys() - taken)))
        return f"<[{others}]>" if others else ""


def joined(*parts: str) -> str:
    """Return what follows one another."""
    return " ".join(filter(None, parts))


def quoted(text: str) -> str:
    """Return a text as a terminal; nothing for an empty one."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def _ranges(ids: Sequence[int]) -> Iterator[str]:
    """Yield ``first-last`` for each run of neighbours."""
    first = last = None
    for token_id in ids:
        if last is not None and token_id == last + 1:
            last = token_id
            continue
        if first is not None:
            yield f"{first}-{last}"
        first = last = token_id
    if first is not None:
        yield f"{first}-{last}"
