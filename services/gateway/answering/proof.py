"""Proof of path: which way an answer went, as clients read it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TIMING_STEPS = ("gateway", "route", "reserve", "prefill_queue", "prefill", "transfer", "decode_queue", "first_token")


@dataclass(frozen=True)
class PathProof:
    """The way of one sequence; ``timings_ms`` by step, in milliseconds."""

    path: str
    """``pd``, ``local``, ``fallback`` or ``handover``; ``unknown`` if the decode worker did not come to tell it."""
    prefill: str | None
    decode: str
    cached_tokens: int
    """Prompt tokens that the decode worker had."""
    prefill_cached_tokens: int
    """Prompt tokens that the prefill worker had."""
    transferred_tokens: int
    recomputed_tokens: int
    kv_bytes: int
    transport: str | None
    verified: bool | None
    """Whether every block that arrived was checked; None if none did."""
    attempts: int
    """Prefill attempts."""
    reason: str | None
    """Why disaggregation was not used or failed."""
    kv_source: str | None = None
    """Worker that had KV of the sequence already and pushed it to the decode worker."""
    fetched_tokens: int = 0
    """Those of the transferred tokens that came from there."""
    replays: int = 0
    """How often another decode worker had to go on because one was lost."""
    handovers: int = 0
    """How often another decode worker went on because one leaves."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def spared_tokens(self) -> int:
        """Prompt tokens that nobody had to compute."""
        return max(self.cached_tokens + self.fetched_tokens, self.prefill_cached_tokens)

    def to_json(self) -> dict[str, Any]:
        """Return the object that stands as ``tandem`` in answers; steps in their order, only those that happened."""
        values = asdict(self)
        values["timings_ms"] = {
            step: round(self.timings_ms[step], 3) for step in TIMING_STEPS if step in self.timings_ms
        }
        return values


def proofs_json(proofs: Sequence[PathProof]) -> dict[str, Any]:
    """Return the proof of an answer; with several sequences the first one's, and each under ``choices``."""
    first = proofs[0].to_json()
    return first if len(proofs) == 1 else {**first, "choices": [proof.to_json() for proof in proofs]}
