"""Token ids to text as they come; cut characters wait until they are whole."""

from collections import deque
from collections.abc import Mapping

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# A character takes at most four byte tokens, so at most three can be waiting for the fourth.
_MAX_PARTIAL_TOKENS = 3
# DecodeStream decodes all held tokens anew at each step; beyond this many they are no character.
_MAX_HELD_TOKENS = 16
# Decoders treat the start of a text specially (a leading space is dropped), so late text is decoded after these.
_CONTEXT_TOKENS = 4


class Detokenizer:
    """Incremental decoding of one sequence; special tokens give no text, but for those that are ``shown``."""

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._stream = DecodeStream(skip_special_tokens=True)
        self._context: deque[int] = deque(maxlen=_CONTEXT_TOKENS)
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes; empty while a character is cut."""
        if token_id in self._shown:
            return self._release_held() + self._shown[token_id]
        self._held.append(token_id)
        text: str | None = self._stream.step(self._tokenizer, token_id)
        if text is not None:
            self._context.extend(self._held)
            self._held.clear()
            return text
        return self._release_junk() if len(self._held) >= _MAX_HELD_TOKENS else ""

    def flush(self) -> str:
        """Return the text of what is still held, cut characters as U+FFFD; nothing may be pushed afterwards."""
        text = self._text_of(self._held)
        self._held = []
        return text

    def _release_held(self) -> str:
        """Give out what is held before a special token, which ends every character."""
        if not self._held:
            return ""
        text = self.flush()
        self._reopen()
        return text

    def _release_junk(self) -> str:
        """Give out held tokens that cannot become a character, and start anew with the few that may."""
        junk, partial = self._held[:-_MAX_PARTIAL_TOKENS], self._held[-_MAX_PARTIAL_TOKENS:]
        text = self._text_of(junk)
        self._reopen()
        self._held = []
        return text + "".join(self.push(token_id) for token_id in partial)

    def _reopen(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        if self._context:
            self._stream.step(self._tokenizer, list(self._context))

    def _text_of(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        context = list(self._context)
        before = self._tokenizer.decode(context)
        return str(self._tokenizer.decode(context + token_ids)[len(before) :])
