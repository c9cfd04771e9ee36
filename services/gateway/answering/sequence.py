"""One sequence: what is asked, and what is heard of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from services.cluster.registry import MemberLoad
from services.gateway.answering.proof import PathProof
from services.gateway.routing.candidates import Requirements
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SequenceRequest:
    """A prompt to continue."""

    request_id: str
    project: str
    requirements: Requirements
    block_size: int
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    deadline_s: float
    """On the clock's ``now``."""
    timings_ms: Mapping[str, float]
    """What was measured before routing."""
    resumed_token_ids: tuple[int, ...] = ()
    """Output that is known already; only what follows it is told."""


@dataclass(slots=True)  # not frozen: one is made for each token, at four times the cost
class GeneratedToken:
    """One token; ``logprob`` and ``top`` (token id, log probability; best first) are there when asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Accepted:
    """A decode worker took the sequence; said once, whatever happens later."""


@dataclass(slots=True)  # as above
class NewTokens:
    """The next tokens."""

    tokens: tuple[GeneratedToken, ...]


@dataclass(frozen=True)
class Ended:
    """The sequence ended normally."""

    reason: FinishReason


SequenceEvent = Accepted | NewTokens | Ended


def tokens_of(message: pb.Tokens) -> tuple[GeneratedToken, ...]:
    """Return the tokens of a message."""
    return tuple(
        [_with_logprobs(token) if token.HasField("logprob") else GeneratedToken(token.id) for token in message.tokens]
    )


def _with_logprobs(token: pb.Token) -> GeneratedToken:
    top = tuple((entry.token_id, entry.logprob) for entry in token.top)
    return GeneratedToken(token.id, token.logprob, top)


def load_of(message: pb.Load) -> MemberLoad:
    """Return the load of a message."""
    return MemberLoad(
        running=message.running,
        waiting=message.waiting,
        queued_tokens=message.queued_tokens,
        available_blocks=message.available_blocks,
        total_blocks=message.total_blocks,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
    )


def proof_of(message: pb.PathProof) -> PathProof:
    """Return the proof of a message."""
    return PathProof(
        path=message.path,
        prefill=message.prefill or None,
        decode=message.decode,
        cached_tokens=message.cached_tokens,
        prefill_cached_tokens=message.prefill_cached_tokens,
        transferred_tokens=message.transferred_tokens,
        recomputed_tokens=message.recomputed_tokens,
        kv_bytes=message.kv_bytes,
        transport=message.transport or None,
        verified=message.verified if message.kv_bytes else None,
        attempts=message.attempts,
        reason=message.reason or None,
        kv_source=message.kv_source or None,
        fetched_tokens=message.fetched_tokens,
        timings_ms=dict(message.timings_ms),
    )


def unknown_proof(decode_id: str, cached_tokens: int = 0) -> PathProof:
    """Return the proof of a sequence whose worker did not tell the way."""
    return PathProof(
        path="unknown",
        prefill=None,
        decode=decode_id,
        cached_tokens=cached_tokens,
        prefill_cached_tokens=0,
        transferred_tokens=0,
        recomputed_tokens=0,
        kv_bytes=0,
        transport=None,
        verified=None,
        attempts=0,
        reason="the answer ended before the decode worker told its way",
    )


def completed_proof(
    proof: PathProof, *, timings_ms: Mapping[str, float], num_replays: int, num_handovers: int
) -> PathProof:
    """Return ``proof`` with what the gateway knows itself."""
    timings_ms = {**proof.timings_ms, **timings_ms}
    return replace(proof, timings_ms=timings_ms, replays=num_replays, handovers=num_handovers)
