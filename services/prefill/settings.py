"""Settings of a prefill worker."""

from pydantic import Field

from services.worker.settings import WorkerSettings


class PrefillSettings(WorkerSettings):
    """A prefill worker."""

    progress_interval_s: float = Field(default=5.0, gt=0)
    """How often the caller of a waiting prompt is told that this worker is at work on others."""
    min_fetch_tokens: int = Field(default=16, ge=1)
    """Least number of tokens whose KV is fetched from the decode worker that has it, and not computed again."""
    fetch_step_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time without progress of such a fetch; shorter than the decode worker's `prefill_step_timeout_s`."""
    max_queued_tokens: int = Field(default=65_536, ge=1)
    """Most uncomputed prompt tokens accepted; further prompts are refused and tried elsewhere."""
