"""Grammars by the llguidance library: JSON schemas and Lark over any tokenizer, some 10 us a mask, no torch.

A mask follows from the definition and the tokens before it alone, so any worker with the same version goes on exactly.
Compiling may take very long, or more memory than there is, whatever the limits say: try unknown definitions elsewhere
first (``services.worker.grammar_trial``).
"""

from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from services.engine.grammar import PARAM, Grammar, out_of_language
from services.errors import InvalidRequest

_MAX_ERROR_LENGTH = 300


class LLGuidanceGrammars:
    """Grammars over one tokenizer, as llguidance writes them: ``{"grammars": [...]}`` or Lark."""

    def __init__(self, tokenizer_json: str, *, vocab_size: int, end_token_ids: Sequence[int]) -> None:
        """Read the text of a ``tokenizer.json``, which takes about a second.

        Raises:
            ValueError: it is no tokenizer that the library knows.
        """
        self._tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(end_token_ids))

    def compile(self, definition: str) -> Grammar:
        """Compile the definition and compute its first mask, which is a slow one.

        Copies of a matcher share its lexer, and the states that one finds count against all: so there are none.
        """
        grammar = _LLGuidanceGrammar(LLMatcher(self._tokenizer, definition, log_level=0, limits=_limits()))
        grammar.allowed()
        return grammar


def _limits() -> LLParserLimits:
    """Return what bounds each mask to some 40 ms and each request to some 40 MB; docs/structured-outputs.md."""
    return LLParserLimits(
        max_items_in_row=2_500,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class _LLGuidanceGrammar:
    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._require_sound()

    def consume(self, token_ids: Sequence[int]) -> None:
        """Go on."""
        num_consumed = self._matcher.try_consume_tokens(list(token_ids))
        self._require_sound()
        if num_consumed < len(token_ids):
            raise out_of_language(token_ids[num_consumed:])

    def allowed(self) -> bytes:
        """Return the matcher's bit mask."""
        mask = self._matcher.compute_bitmask()
        self._require_sound()
        return mask

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(f"The schema cannot be enforced: {_told(self._matcher.get_error())}", param=PARAM)


def _told(problem: str) -> str:
    if problem.startswith("panic"):  # an assertion of the library about sizes, caught there
        return "it is too large"
    return " ".join(problem.replace("<non-verbose/>", "").split())[:_MAX_ERROR_LENGTH]
