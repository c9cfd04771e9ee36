"""Settings that prefill and decode workers share."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.rpc.member_settings import MemberSettings


class WorkerSettings(MemberSettings):
    """One worker process: its model, its memory, its place in the cluster."""

    model: str = "smollm2"
    """What to serve: `smollm2`, a Hugging Face id, a folder in Hugging Face format or a .gguf file."""
    served_model_name: str | None = None
    """Name that clients use; the model's own name if not given."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Type of weights, activations and KV cache."""
    device: str = "cpu"
    """`cpu` or a torch device such as `cuda:0`."""
    exact: bool = False
    """On a GPU: choose kernels whose results do not depend on the batch, at some cost. On CPU that is always so."""
    threads: int = Field(default=0, ge=0)
    """Compute threads; 0 means all CPUs of the affinity mask and the cgroup quota."""
    max_model_len: int = Field(default=0, ge=0)
    """Longest sequence, prompt and output; 0 means the model's own limit. The KV pool may lower it further."""
    kv_memory_bytes: int = Field(default=0, ge=0)
    """Memory of the KV pool; 0 means `kv_memory_share` of what is free under the cgroup limit."""
    kv_memory_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the free memory that the KV pool takes if `kv_memory_bytes` is 0."""
    parked_memory_bytes: int = Field(default=0, ge=0)
    """Host memory for KV blocks that the pool has no room for, so that idle conversations are found again; useful where
    the pool is on a GPU. 0 keeps none."""
    max_step_tokens: int = Field(default=512, ge=16)
    """Most tokens of one forward pass: the prefill chunk size when nothing else runs."""
    max_mixed_prefill_tokens: int = Field(default=16, ge=16)
    """Most prompt tokens of a forward pass in which other requests generate."""
    num_speculative_tokens: int = Field(default=0, ge=0)
    """Most tokens guessed ahead from earlier text of the same sequence (prompt lookup), where few sequences run; the
    answers are the same, those that repeat their prompt come sooner. 0 guesses none."""
    max_running: int = Field(default=64, ge=1)
    """Most requests that take part in steps at once."""
    max_waiting: int = Field(default=256, ge=1)
    """Longest queue; further requests are refused with 429."""
    verify_weights: bool = False
    """Hash all bytes of the weights instead of trusting headers, sizes and published checksums."""

    cache_dir: Path = Path("~/.cache/tandem")
    """Where converted models and compiled kernels are kept."""
    transport: Literal["nixl", "tcp"] = "nixl"
    """How KV blocks move between workers."""
    push_timeout_s: float = Field(default=60.0, gt=0)
    """Longest time one push of KV blocks may take before its request fails."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """How long new work is still taken after SIGTERM, while the others learn that this worker leaves."""
    drain_timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for running work after that."""
    grammar_timeout_s: float = Field(default=1.0, gt=0)
    """Longest time that compiling a request's schema or tools may take; then a decode worker refuses it with 400."""
    payload_digests: bool = True
    """Digest every block's bytes; without, answers are marked `verified: false`."""
    max_reserved_share: float = Field(default=0.3, gt=0, le=1)
    """Largest share of the KV pool that blocks on their way to this worker may hold."""
    settle_grace_s: float = Field(default=5.0, ge=0)
    """How long blocks stay quarantined after who may have written them is dead, or has removed this worker from its
    transport: what was sent before may still be on its way."""
    max_quarantined_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the KV pool in quarantine above which a worker says that it is unhealthy, drains and ends, so that its
    supervisor replaces it."""
    fault_plan: Path | None = None
    """A test instrument: a YAML file that says at which protocol steps this worker misbehaves (docs/reliability.md)."""
