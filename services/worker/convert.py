"""Between the wire's messages and the engine's types; protobuf types stop at the servicers."""

from services.engine.output import EngineLoad, SampledToken, TokenLogprob
from services.engine.request import FinishReason
from services.rpc import tandem_pb2 as pb
from services.transfer.transport import Endpoint

_REASONS: dict[FinishReason | None, pb.FinishReason.ValueType] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def token_to_message(token: SampledToken) -> pb.Token:
    """Return the message of a token."""
    if token.logprob is None:
        return pb.Token(id=token.token_id)
    top = [pb.TokenLogprob(token_id=entry.token_id, logprob=entry.logprob) for entry in token.top]
    return pb.Token(id=token.token_id, logprob=token.logprob, top=top)


def token_from_message(message: pb.Token) -> SampledToken:
    """Return the token of a message."""
    return SampledToken(
        token_id=message.id,
        logprob=message.logprob if message.HasField("logprob") else None,
        top=tuple(TokenLogprob(entry.token_id, entry.logprob) for entry in message.top),
    )


def reason_to_message(reason: FinishReason | None) -> pb.FinishReason.ValueType:
    """Return the wire's finish reason."""
    return _REASONS[reason]


def load_to_message(load: EngineLoad, prefill_tokens_per_s: float) -> pb.Load:
    """Return the message of an engine's load."""
    return pb.Load(
        running=load.num_running,
        waiting=load.num_waiting,
        queued_tokens=load.num_queued_tokens,
        available_blocks=load.num_available_blocks,
        total_blocks=load.num_total_blocks,
        prefill_tokens_per_s=prefill_tokens_per_s,
    )


def endpoint_to_message(endpoint: Endpoint) -> pb.Endpoint:
    """Return the message of an endpoint."""
    return pb.Endpoint(
        transport=endpoint.transport,
        agent=endpoint.agent,
        fingerprint=endpoint.fingerprint,
        metadata=endpoint.metadata,
    )


def endpoint_from_message(message: pb.Endpoint) -> Endpoint:
    """Return the endpoint of a message."""
    return Endpoint(message.transport, message.agent, message.fingerprint, message.metadata)
