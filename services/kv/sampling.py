"""Sampling parameters: what a client may ask of the sampler, validated once."""

from dataclasses import dataclass, field

from services.errors import InvalidRequest

MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1
MAX_GRAMMAR_LENGTH = 2**20


@dataclass(frozen=True)
class SamplingParams:
    """How to choose each next token.

    Sampling is a pure function of logits, these parameters, ``choice_index``, the output position and
    the output history, so that any worker continues a sequence exactly.
    """

    seed: int
    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """How many top log probabilities to report for each token; None reports none at all."""
    stop_token_ids: frozenset[int] = frozenset()
    """Sampling one of these ends the sequence; the model's own end tokens are among them unless ``ignore_eos``."""
    choice_index: int = 0
    grammar: str | None = None
    """What the whole output satisfies, as llguidance reads it; None leaves the output free."""

    def __post_init__(self) -> None:
        _between("seed", self.seed, 0, MAX_SEED)
        _between("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _between("min_tokens", self.min_tokens, 0, self.max_tokens)
        _between("temperature", self.temperature, 0.0, 2.0)
        _between("top_p", self.top_p, 0.0, 1.0)
        _between("top_k", self.top_k, 0, 2**31 - 1)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        if self.top_p == 0.0:
            raise InvalidRequest("top_p must be greater than 0.", param="top_p")
        if self.logprobs is not None:
            _between("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.grammar is not None:
            self._check_grammar(self.grammar)
        for bias in self.logit_bias.values():
            _between("logit_bias", bias, -100.0, 100.0)

    def _check_grammar(self, grammar: str) -> None:
        if len(grammar) > MAX_GRAMMAR_LENGTH:
            raise InvalidRequest(
                f"The grammar has {len(grammar)} characters, at most {MAX_GRAMMAR_LENGTH} are allowed.", param="grammar"
            )
        if self.min_tokens:
            raise InvalidRequest(
                "What a schema or tools describe ends when it is whole: leave min_tokens out.", param="min_tokens"
            )
        if not self.stop_token_ids:
            raise InvalidRequest("An output with a grammar ends by the model's end token.", param="stop_token_ids")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also false for NaN
        raise InvalidRequest(f"{name} must be between {low} and {high}, got {value}.", param=name)
