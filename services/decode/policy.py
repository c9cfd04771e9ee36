"""Where a prompt is computed: here, or at a prefill worker."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.rpc import tandem_pb2 as pb

_REMOTE_OVERHEAD_S = 0.02


@dataclass(frozen=True)
class PrefillPolicy:
    """Short prompts stay home; longer ones go where their first token is predicted to come sooner.

    Computing here also slows every running stream down, so while others generate the local rate counts
    only for the tokens that a mixed step may carry.
    """

    always_local_tokens: int
    max_mixed_prefill_tokens: int

    def is_local(
        self,
        uncached_tokens: int,
        candidates: Sequence[pb.PrefillCandidate],
        *,
        num_running: int,
        local_tokens_per_s: float,
    ) -> bool:
        """Return whether the prompt is computed by this worker by choice (not for want of candidates)."""
        if uncached_tokens <= self.always_local_tokens:
            return True
        if (
            not candidates
            or local_tokens_per_s <= 0
            or num_running > 0
            or uncached_tokens > self.max_mixed_prefill_tokens
        ):
            return False
        remote_s = _REMOTE_OVERHEAD_S + (candidates[0].queued_tokens + uncached_tokens) / local_tokens_per_s
        return uncached_tokens / local_tokens_per_s < remote_s
