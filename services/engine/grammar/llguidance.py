"""Grammars by the llguidance library: JSON schemas over any tokenizer, some 50 us a mask.

Numbers of two runs agree, since a mask follows from the schema and the tokens before it alone.
"""

from collections.abc import Sequence

import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from services.engine.grammar.grammar import Grammar, out_of_language
from services.errors import InvalidRequest

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value: small models fill the space between two items for ever if they may."""


class LLGuidanceGrammars:
    """Grammars over one tokenizer."""

    def __init__(self, tokenizer_json: str, vocab_size: int) -> None:
        """``tokenizer_json`` is the text of a ``tokenizer.json``; reading it takes about a second."""
        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size)
        self._vocab_size = vocab_size

    def start(self, json_schema: str) -> Grammar:
        """Compile the schema, which takes milliseconds."""
        try:
            definition = LLMatcher.grammar_from_json_schema(json_schema, defaults=_STYLE)
        except ValueError as error:  # no JSON, or no object
            raise InvalidRequest(f"The JSON schema cannot be read: {error}", param="response_format") from error
        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(definition, self._tokenizer)
        if is_wrong or messages:
            problem = " ".join(str(messages[0]).split()) if messages else "it cannot be read"
            raise InvalidRequest(f"The JSON schema cannot be enforced: {problem}", param="response_format")
        return _LLGuidanceGrammar(LLMatcher(self._tokenizer, definition), self._vocab_size, self._tokenizer.eos_tokens)


class _LLGuidanceGrammar:
    def __init__(self, matcher: LLMatcher, vocab_size: int, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._ends = list(ends)
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocab_size)

    def consume(self, token_ids: Sequence[int]) -> None:
        """Go on."""
        if token_ids and not self._matcher.consume_tokens(list(token_ids)):
            raise out_of_language(token_ids)

    def allowed(self) -> torch.Tensor:
        """Unpack the matcher's bit mask."""
        if self._matcher.is_stopped():
            return torch.zeros(self._vocab_size, dtype=torch.bool)
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        bits = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[: self._vocab_size]
        allowed = torch.from_numpy(bits.astype(np.bool_))
        allowed[self._ends] = False
        return allowed

    @property
    def is_complete(self) -> bool:
        """Whether the text is a whole value."""
        return bool(self._matcher.is_accepting())
