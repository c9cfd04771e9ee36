"""Settings of a prefill worker."""

from pydantic import Field

from services.worker.settings import WorkerSettings


class PrefillSettings(WorkerSettings):
    """A prefill worker."""

    progress_interval_s: float = Field(default=5.0, gt=0)
    """How often the caller of a waiting prompt is told that this worker is at work on others."""
    max_queued_tokens: int = Field(default=65_536, ge=1)
    """Most uncomputed prompt tokens accepted; further prompts are refused and tried elsewhere."""
