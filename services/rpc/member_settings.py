"""Settings that all workers share: where they listen, and how they find their cluster."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.rpc.tls import TlsSettings


class MemberSettings(TlsSettings):
    """Settings of whoever joins the cluster and serves gRPC."""

    host: str = "127.0.0.1"
    """Address the gRPC server binds to."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the gRPC server; 0 picks a free one."""
    advertise_host: str | None = None
    """Address under which others reach this worker; `host` if not given."""
    admin_host: str = "127.0.0.1"
    """Address of the admin port (/livez, /readyz, /metrics)."""
    admin_port: int = Field(default=0, ge=0, le=65535)
    """Admin port; 0 picks a free one."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Redis or Valkey that holds the membership; redis:// or unix://."""
    secret_file: Path = Path("~/.local/share/tandem/secret")
    """File with the cluster secret, the same for all services; made there if missing."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_json: bool = False
    """Write the log as JSON lines."""
