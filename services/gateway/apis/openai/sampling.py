"""From a request's fields to sampling parameters that fit the model and its context."""

import secrets
from collections.abc import Mapping, Sequence

from services.errors import ContextLengthExceeded, InvalidRequest
from services.gateway.apis.openai.schemas import SamplingFields
from services.kv.card import ModelCard
from services.kv.sampling import MAX_SEED, SamplingParams

# Numbers above 2**53 change on their way through JavaScript.
_DRAWN_SEED_BITS = 53


def sampling_params(
    body: SamplingFields, card: ModelCard, *, max_tokens: int, logprobs: int | None, grammar: str | None = None
) -> SamplingParams:
    """Return the parameters of a request; what it leaves open is what the model's authors advise.

    Raises:
        InvalidRequest: a value is out of range; ``param`` names it.
    """
    if grammar is not None and body.ignore_eos:
        raise InvalidRequest(
            "What a schema or tools describe ends when it is whole: leave ignore_eos out.", param="ignore_eos"
        )
    advised = card.generation_defaults
    return SamplingParams(
        seed=secrets.randbits(_DRAWN_SEED_BITS) if body.seed is None else body.seed % (MAX_SEED + 1),
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=_first(body.temperature, advised.get("temperature"), 1.0),
        top_p=_first(body.top_p, advised.get("top_p"), 1.0),
        top_k=max(int(_first(body.top_k, advised.get("top_k"), 0)), 0),
        min_p=_first(body.min_p, advised.get("min_p"), 0.0),
        presence_penalty=_first(body.presence_penalty, None, 0.0),
        frequency_penalty=_first(body.frequency_penalty, None, 0.0),
        repetition_penalty=_first(body.repetition_penalty, advised.get("repetition_penalty"), 1.0),
        logit_bias=_logit_bias(body.logit_bias or {}, card.vocab_size),
        logprobs=logprobs,
        stop_token_ids=_stop_token_ids(body, card),
        grammar=grammar,
    )


def room_for_output(
    card: ModelCard, prompts: Sequence[Sequence[int]], wanted: int | None, *, default: int, param: str
) -> int:
    """Return how many tokens each answer may have.

    Raises:
        ContextLengthExceeded: a prompt, or a prompt and the output asked for, do not fit into the context.
    """
    longest = max(map(len, prompts))
    limit = card.context_length
    if longest >= limit:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens. However, your {param} resulted in {longest} "
            f"tokens. Please reduce the length of the {param}.",
            param=param,
        )
    if wanted is not None and longest + wanted > limit:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens. However, you requested {longest + wanted} "
            f"tokens ({longest} in the {param}, {wanted} in the completion). Please reduce the length of the "
            f"{param} or completion.",
            param=param,
        )
    return min(default, limit - longest) if wanted is None else wanted


def choice_count(body: SamplingFields, num_prompts: int, max_choices: int) -> int:
    """Return how many answers each prompt gets.

    Raises:
        InvalidRequest: too many in all.
    """
    num_choices = body.n or 1
    if num_choices * num_prompts > max_choices:
        raise InvalidRequest(f"At most {max_choices} answers can be asked for at once.", param="n")
    return num_choices


def check_stream_options(body: SamplingFields) -> None:
    """Refuse options of a stream where none is asked for.

    Raises:
        InvalidRequest: ``stream_options`` without ``stream``.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )


def wants_usage(body: SamplingFields) -> bool:
    """Return whether a stream shall end with a usage chunk."""
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _first(given: float | None, advised: float | None, default: float) -> float:
    if given is not None:
        return given
    return default if advised is None else advised


def _stop_token_ids(body: SamplingFields, card: ModelCard) -> frozenset[int]:
    given = body.stop_token_ids or []
    _check_ids(given, card.vocab_size, "stop_token_ids")
    return frozenset(given) | (frozenset() if body.ignore_eos else frozenset(card.eos_token_ids))


def _logit_bias(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    try:
        bias = {int(token_id): value for token_id, value in given.items()}
    except ValueError as error:
        raise InvalidRequest("The keys of 'logit_bias' must be token ids.", param="logit_bias") from error
    _check_ids(list(bias), vocab_size, "logit_bias")
    return bias


def _check_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"The model has no token {token_id}; ids go up to {vocab_size - 1}.", param=param)
