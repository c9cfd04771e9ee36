"""Where a prompt is computed by choice: here, or at a prefill worker."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.rpc import tandem_pb2 as pb
from services.worker.throughput import Throughput

REMOTE_OVERHEAD_S = 0.01
"""What a hand-over costs beside computing: two RPCs and the transfer of the last chunk."""


@dataclass(frozen=True)
class PrefillPolicy:
    """Short prompts stay home; others go where their first token is predicted to come sooner.

    Whatever the prediction says, prompts beyond ``max_local_tokens`` go away: computed here they would stand
    in the way of streams that start meanwhile.
    """

    always_local_tokens: int
    max_local_tokens: int
    max_mixed_prefill_tokens: int

    def is_local(
        self,
        uncached_tokens: int,
        candidates: Sequence[pb.PrefillCandidate],
        *,
        num_running: int,
        throughput: Throughput,
    ) -> bool:
        """Return whether this worker computes the prompt by choice, not for want of candidates."""
        if uncached_tokens <= self.always_local_tokens:
            return True
        if not candidates or uncached_tokens > self.max_local_tokens or not throughput.prefill_tokens_per_s:
            return False
        here_s = self._local_s(uncached_tokens, num_running, throughput)
        return here_s < _remote_s(uncached_tokens, candidates[0], throughput)

    def _local_s(self, uncached_tokens: int, num_running: int, throughput: Throughput) -> float:
        """Beside running streams a prompt advances by a small chunk per step, alone at full speed."""
        if not num_running:
            return uncached_tokens / throughput.prefill_tokens_per_s
        return -(-uncached_tokens // self.max_mixed_prefill_tokens) * throughput.generating_step_s


def _remote_s(uncached_tokens: int, candidate: pb.PrefillCandidate, throughput: Throughput) -> float:
    rate = candidate.prefill_tokens_per_s or throughput.prefill_tokens_per_s
    return REMOTE_OVERHEAD_S + (candidate.queued_tokens + uncached_tokens) / rate
