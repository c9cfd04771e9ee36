"""Settings of the commands that are not services: up, chat, keys, export, import, status and drain."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from services.config import Settings, default_data_dir
from services.rpc.tls import TlsSettings


class ClusterSettings(Settings):
    """Where a cluster keeps its state."""

    data_dir: Path = Field(default_factory=default_data_dir)
    """Folder with the cluster secret, the embedded Redis's data and the logs."""
    redis_url: str | None = None
    """Redis or Valkey to use (redis://, rediss:// or unix://); the embedded one of `data_dir` if not given."""


class UpSettings(ClusterSettings):
    """Start a whole cluster on this machine: Redis, one gateway, prefill, decode and embedding workers.

    Fields that name nothing by default are handed on to the processes, whose own settings say the rest.
    """

    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port that the API listens on."""
    prefill: int = Field(default=1, ge=0)
    """Number of prefill workers."""
    decode: int = Field(default=1, ge=1)
    """Number of decode workers."""
    embed: int = Field(default=1, ge=0)
    """Number of embedding workers, started when all else is ready; 0 turns embeddings and file search off."""
    model: str | None = None
    """What to serve: smollm2, a Hugging Face id, a folder in Hugging Face format or a .gguf file."""
    served_model_name: str | None = None
    """Name that clients use for the model."""
    dtype: str | None = None
    """Type of weights, activations and KV cache."""
    device: str | None = None
    """cpu or cuda; GPUs are shared out between the workers."""
    transport: str | None = None
    """How KV blocks move between workers: nixl or tcp."""
    max_model_len: int | None = None
    """Longest sequence, prompt and output."""
    cache_dir: Path | None = None
    """Where downloaded and converted models are kept."""
    log_level: str | None = None
    """debug, info, warning or error."""
    log_json: bool | None = None
    """Let the processes write their log as JSON lines."""
    pin_cores: bool = True
    """Give each worker cores of its own, if there are enough."""
    kv_memory_share_of_all: float = Field(default=0.4, gt=0, lt=1)
    """Share of the free memory that the KV pools of all workers take together."""
    ready_timeout_s: float = Field(default=900.0, gt=0)
    """Longest wait until the cluster is ready, downloads of the model not counted."""
    stop_timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for each process to finish its work when the cluster stops; then it is killed."""


class ChatSettings(Settings):
    """Chat with a model over the HTTP API; a prompt on standard input is answered once."""

    data_dir: Path = Field(default_factory=default_data_dir)
    """Folder of a cluster that runs here; its API is used if `base_url` is not given."""
    base_url: str | None = None
    """Address of the API, such as http://127.0.0.1:8000."""
    api_key: SecretStr | None = None
    """API key to present."""
    model: str | None = None
    """Model to ask; the first one that is served if not given."""
    system: str | None = None
    """System message that opens the conversation."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one answer."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Randomness; 0 is greedy."""
    proof: bool = False
    """Show after each answer which way it went through the cluster."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest silence of the server."""


class KeysSettings(ClusterSettings):
    """Make, list and revoke API keys."""

    project: str | None = None
    """Project that the new key belongs to."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Longest wait for Redis."""


DEFAULT_PROJECT = "default"
"""The project of local callers without an API key."""


class ExportSettings(ClusterSettings):
    """Write the objects of a project as JSON lines: assistants, files, vector stores, threads, responses.

    docs/moving.md says what is in them.
    """

    project: str = DEFAULT_PROJECT
    """Project whose objects are written."""
    output: Path = Path("-")
    """File to write; `-` is standard output."""
    files_folder: Path | None = None
    """Folder for the bytes of files; the one called like the output and `.files` if not given."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for one answer of Redis."""


class ImportSettings(ClusterSettings):
    """Read objects into a project: `tandem import FILE`, where `-` is standard input.

    FILE has one JSON object a line: what `tandem export` wrote, or assistants, threads and messages as OpenAI's API
    returned them.
    """

    project: str = DEFAULT_PROJECT
    """Project that gets the objects."""
    files_folder: Path | None = None
    """Folder with the bytes of files, each under its id or name; the one called like FILE and `.files` if not given."""
    on_conflict: Literal["fail", "skip"] = "fail"
    """What happens if the project has another object of the same id: the line fails, or the object stays as it is."""
    keep_going: bool = False
    """Tell each line that cannot be imported and go on with the next one, instead of ending there."""
    response_retention_s: int = Field(default=7 * 86400, gt=0)
    """How long a response is kept whose line does not say when it ends."""
    max_project_objects: int = Field(default=1_000_000, ge=0)
    """Most objects that the project may keep, as of its gateways; 0 means no limit."""
    max_project_file_bytes: int = Field(default=4 * 2**30, ge=0)
    """Most bytes of files that the project may keep, as of its gateways; 0 means no limit."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for one answer of Redis."""


class StatusSettings(ClusterSettings, TlsSettings):
    """Show who belongs to the cluster, how busy they are, and their block ledgers."""

    secret_file: Path | None = None
    """File with the cluster secret; the one of `data_dir` if not given."""
    format: Literal["table", "json"] = "table"
    """How to print."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Longest wait for Redis and for each worker."""


class DrainSettings(ClusterSettings, TlsSettings):
    """Let workers leave: `tandem drain MEMBER...`, or one of --role and --address.

    They take no new work, end or hand over what runs, and stay idle until they are stopped.
    """

    role: Literal["prefill", "decode", "embed"] | None = None
    """Drain all workers of this role, instead of those named."""
    address: str | None = None
    """Drain the worker whose gRPC server is at this host:port, without asking Redis."""
    within_s: float = Field(default=0.0, ge=0)
    """Longest wait for running work; 0 means each worker's own `drain_timeout_s`."""
    secret_file: Path | None = None
    """File with the cluster secret; the one of `data_dir` if not given."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Longest wait for Redis and for a worker's word on how far it is."""
