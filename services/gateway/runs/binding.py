"""Binds an answer to the token ids that made it, so that the next prompt begins with the very same tokens.

    ids of the next prompt  =  ids of the last prompt  +  ids of the answer  +  ids of what was rendered behind it

That holds if the template only appended: the new text begins with the text of the last prompt and the answer. It is
checked each time; otherwise the prompt is encoded afresh. An answer keeps only its own part of the ids: those of the
conversation before it are kept by the answer that it names as its base.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from services.gateway.store.private import known_fields
from services.gateway.text.tokenizer import Piece
from services.telemetry.logs import get_logger

_log = get_logger(__name__)
_ESCAPE, _OPEN, _CLOSE = "\0", "\0(", "\0)"


@dataclass(frozen=True)
class Binding:
    """What is kept with an answer; the API does not show it."""

    card_digest: str
    """The model that the ids belong to."""
    base: str | None
    """The answer whose context the prompt began with."""
    tail_ids: tuple[int, ...]
    """The rest of the prompt."""
    output_ids: tuple[int, ...]
    """The answer, without the token that ended it."""
    prompt_chars: int
    """Length of the canonical text of the prompt."""
    prompt_digest: str
    first_message_id: str | None
    """The oldest message that was not left out."""
    budget: int
    """Prompt tokens that there was room for; 0 if the run chose itself what to leave out."""
    lead: tuple[Mapping[str, Any], ...] = ()
    """What the run did before the answer, as chat messages; texts with a ``message_id`` are in that message."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Files by the marks that stand for their passages in ``lead``."""

    def to_bytes(self) -> bytes:
        """Return the private bytes of the message."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Binding | None":
        """Read what ``to_bytes`` wrote; None if it was another version of it: then the prompt is encoded afresh."""
        try:
            return cls.of_json(orjson.loads(data))
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("binding.not_read", reason=repr(error))
            return None

    @classmethod
    def without_ids(cls, lead: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> "Binding":
        """Return what is known of an answer that came from elsewhere: what led to it, but not the ids of any model."""
        return cls("", None, (), (), 0, "", None, 0, tuple(lead), sources)

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Binding":
        """Return the binding of its plain values; what only a newer version knows is left out."""
        lists = {name: tuple(values[name]) for name in ("tail_ids", "output_ids", "lead")}
        return cls(**{**known_fields(cls, values), **lists})


class Rendering:
    """A rendered conversation; its canonical text tells control tokens from the same characters in a message."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self._texts = [_canonical(text, is_literal=is_literal) for text, is_literal in pieces]
        self.text = "".join(self._texts)

    def digest(self, num_chars: int) -> str:
        """Return the digest of the first characters of the canonical text."""
        return hashlib.sha256(self.text[:num_chars].encode(errors="surrogatepass")).hexdigest()

    def continues(self, binding: Binding, answer: str) -> int | None:
        """Return where the text goes on after a prompt and its answer; None if it does not begin with them."""
        answer = _canonical(answer, is_literal=False)
        end = binding.prompt_chars + len(answer)
        if not self.text.startswith(answer, binding.prompt_chars):
            return None
        return end if self.digest(binding.prompt_chars) == binding.prompt_digest else None

    def behind(self, num_chars: int) -> list[Piece] | None:
        """Return the pieces behind the first characters; None if that cuts a text that is to be taken literally."""
        start, pieces = 0, []
        for (text, is_literal), canonical in zip(self.pieces, self._texts, strict=True):
            end = start + len(canonical)
            if start >= num_chars:
                pieces.append((text, is_literal))
            elif end > num_chars:
                if is_literal:
                    return None
                pieces.append((canonical[num_chars - start :].replace(2 * _ESCAPE, _ESCAPE), False))
            start = end
        return pieces


def context_ids(message_id: str, bindings: Mapping[str, Binding]) -> tuple[int, ...] | None:
    """Return the ids of a message's prompt and of the message itself; None if an earlier answer is gone."""
    chain: list[Binding] = []
    name: str | None = message_id
    while name is not None:
        if (binding := bindings.get(name)) is None or len(chain) > len(bindings):
            return None
        chain.append(binding)
        name = binding.base
    return tuple(
        token_id for binding in reversed(chain) for part in (binding.tail_ids, binding.output_ids) for token_id in part
    )


def _canonical(text: str, *, is_literal: bool) -> str:
    text = text.replace(_ESCAPE, 2 * _ESCAPE)
    return f"{_OPEN}{text}{_CLOSE}" if is_literal else text
