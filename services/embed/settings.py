"""Settings of an embedding worker."""

from pathlib import Path

from pydantic import Field

from services.rpc.member_settings import MemberSettings


class EmbedSettings(MemberSettings):
    """An embedding worker; it loads its model with the first request."""

    embedding_model: str = "minilm"
    """What to serve: `minilm` (all-MiniLM-L6-v2), a folder in Hugging Face format or a Hugging Face id."""
    embedding_name: str | None = None
    """Name that clients use; the model's own name if not given."""
    device: str = "cpu"
    """`cpu` or a torch device such as `cuda:0`."""
    threads: int = Field(default=1, ge=1)
    """Compute threads."""
    niceness: int = Field(default=10, ge=0, le=19)
    """How far other processes go first on the CPU; 0 is like all others."""
    max_batch_tokens: int = Field(default=2048, ge=256)
    """Most tokens of one forward pass, and so the longest wait of a short request for a long one."""
    max_waiting: int = Field(default=256, ge=1)
    """Longest queue; further requests are refused with 429."""
    retry_s: float = Field(default=300.0, gt=0)
    """How often a model that cannot be had is looked for again."""

    cache_dir: Path = Path("~/.cache/tandem")
    """Where downloaded models are kept."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """How long new requests are still taken after SIGTERM, while gateways learn that this worker leaves."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    """How long requests may take to end after that."""
