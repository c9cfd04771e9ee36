"""Between the wire's messages and the plain types of ``services.kv``; protobuf types stop at the servicers."""

from services.errors import InvalidRequest
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb


def sampling_to_message(params: SamplingParams) -> pb.SamplingParams:
    """Return the message of ``params``."""
    return pb.SamplingParams(
        seed=params.seed,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        logprobs=params.logprobs,
        stop_token_ids=sorted(params.stop_token_ids),
        choice_index=params.choice_index,
        grammar=params.grammar,
    )


def duration_from_message(name: str, given_s: float, longest_s: float) -> float:
    """Return a duration of a message, at most ``longest_s``; 0 means just that.

    Raises:
        InvalidRequest: it is negative or not a number.
    """
    if not given_s >= 0:  # also true for NaN, which an event loop does not survive
        raise InvalidRequest(f"{name} must not be negative, got {given_s}.", param=name)
    return min(given_s or longest_s, longest_s)


def sampling_from_message(message: pb.SamplingParams) -> SamplingParams:
    """Return the validated parameters of a message.

    Raises:
        InvalidRequest: a value is out of range.
    """
    return SamplingParams(
        seed=message.seed,
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=dict(message.logit_bias),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        stop_token_ids=frozenset(message.stop_token_ids),
        choice_index=message.choice_index,
        grammar=message.grammar if message.HasField("grammar") else None,
    )
