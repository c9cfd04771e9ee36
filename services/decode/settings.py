"""Settings of a decode worker."""

from pydantic import Field

from services.worker.settings import WorkerSettings


class DecodeSettings(WorkerSettings):
    """A decode worker."""

    request_timeout_s: float = Field(default=600.0, gt=0)
    """Longest life of one request."""
    prefill_step_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time without progress of a prompt at a prefill worker before the next one is tried."""
    reserve_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for KV blocks before a request is refused with 429."""
    max_prefill_attempts: int = Field(default=3, ge=1)
    """Prefill workers tried for one request before the prompt is computed here."""
    local_prefill_tokens: int = Field(default=64, ge=0)
    """Prompts with at most this many uncached tokens are always computed here."""
    max_local_prefill_tokens: int = Field(default=128, ge=0)
    """Prompts with at most this many uncached tokens are computed here if that is predicted to be sooner."""
    handover_after_s: float = Field(default=30.0, ge=0)
    """How long a worker that leaves lets its sequences run before it hands them, with their KV, to another decode
    worker if there is one; never longer than half of `drain_timeout_s`."""
    handover_keep_s: float = Field(default=30.0, gt=0)
    """How long the KV of a sequence that was handed over waits for whoever goes on with it."""
