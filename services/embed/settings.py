"""Settings of an embedding worker."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.rpc.tls import TlsSettings


class EmbedSettings(TlsSettings):
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

    host: str = "127.0.0.1"
    """Address the gRPC server binds to."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the gRPC server; 0 picks a free one."""
    advertise_host: str | None = None
    """Address under which gateways reach this worker; `host` if not given."""
    admin_host: str = "127.0.0.1"
    """Address of the admin port (/livez, /readyz, /metrics)."""
    admin_port: int = Field(default=0, ge=0, le=65535)
    """Admin port; 0 picks a free one."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Redis or Valkey that holds the membership; redis:// or unix://."""
    secret_file: Path = Path("~/.local/share/tandem/secret")
    """File with the cluster secret, the same for all services; made there if missing."""
    cache_dir: Path = Path("~/.cache/tandem")
    """Where downloaded models are kept."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    """How long requests may take to end when the worker leaves."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_json: bool = False
    """Write the log as JSON lines."""
