"""Settings of the gateway process."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from services.rpc.tls import TlsSettings

ToolFormatName = Literal[
    "hermes",
    "qwen3_coder",
    "glm45",
    "glm47",
    "llama",
    "mistral",
    "mistral_v11",
    "deepseek",
    "deepseek_v3",
    "harmony",
]


class GatewaySettings(TlsSettings):
    """Everything that can be set about a gateway."""

    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port that the API listens on; 0 lets the system choose."""
    admin_host: str = "127.0.0.1"
    """Address that health and metrics listen on."""
    admin_port: int = Field(default=8001, ge=0, le=65535)
    """Port that health and metrics listen on; 0 lets the system choose."""
    serve_admin_on_main: bool = False
    """Also answer /livez, /readyz and /metrics on the API's port."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where membership, keys, timelines and API objects are kept: redis://, rediss:// or unix://."""
    redis_timeout_s: float = Field(default=2.0, gt=0)
    """Longest wait for one answer of Redis."""
    secret_file: Path = Path("~/.local/share/tandem/secret")
    """File with the cluster secret, the same for all services; made there if missing."""
    members_interval_s: float = Field(default=1.0, gt=0)
    """How often the list of workers is read."""

    max_header_bytes: int = Field(default=64 * 2**10, gt=0)
    """Largest accepted head of a request: its first line and its headers."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """Longest wait for the whole head of a request before 408."""
    idle_connection_s: int = Field(default=75, gt=0)
    """How long a connection may be idle between two requests. Give more than load balancers before the gateway keep
    theirs (many 60 s), or they send requests into connections that are being closed."""
    max_body_bytes: int = Field(default=4 * 2**20, gt=0)
    """Largest accepted request body."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for the whole body of a request before 408."""
    max_file_bytes: int = Field(default=512 * 2**20, gt=0)
    """Largest file, and largest sum of an upload's parts; files are kept in Redis, which has them in memory."""
    max_project_file_bytes: int = Field(default=4 * 2**30, ge=0)
    """Most bytes of files that each project may keep; 0 means no limit."""
    max_project_objects: int = Field(default=1_000_000, ge=0)
    """Most objects (threads, messages, runs, steps, files and so on) that each project may keep; 0 means no limit."""
    max_embedding_tokens: int = Field(default=8192, gt=0)
    """Longest input of /v1/embeddings; what is longer than the model's context gets the mean of its parts."""
    embedding_timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for an embedding worker, which loads its model with the first request."""
    ingestion_tasks: int = Field(default=2, ge=0)
    """Files that this gateway indexes at once, of one project at most all but one; 0 leaves that to others."""
    ingestion_interval_s: float = Field(default=2.0, gt=0)
    """How often files are looked for that another gateway took and did not end."""
    ingestion_lease_s: float = Field(default=30.0, gt=0)
    """How long a file is left to a gateway that says nothing."""
    ingestion_patience_s: float = Field(default=60.0, ge=0)
    """How long indexing waits for an embedding worker before the file has failed."""
    indexing_wait_s: float = Field(default=60.0, ge=0)
    """How long after its beginning a run that searches waits for files that are still being indexed; then it searches
    what is there."""
    max_ingested_tokens: int = Field(default=5_000_000, gt=0)
    """Most tokens of one file in a vector store."""
    max_text_bytes: int = Field(default=64 * 2**20, gt=0)
    """Most text of one document."""
    parse_memory_bytes: int = Field(default=2**30, gt=0)
    """Address space of the process that parses one document."""
    parse_timeout_s: float = Field(default=120.0, gt=0)
    """Longest time for parsing one document."""
    search_cache_bytes: int = Field(default=512 * 2**20, gt=0)
    """Memory for the vectors and files of the vector stores that were searched last."""
    index_timeout_s: float = Field(default=30.0, gt=0)
    """How long a search waits for the vectors of one vector store."""
    upkeep_interval_s: float = Field(default=5.0, gt=0)
    """How often files, uploads and vector stores whose time is over are looked for."""
    max_choices: int = Field(default=128, gt=0)
    """Most sequences that one request may ask for (prompts times n)."""
    tool_formats: dict[str, ToolFormatName] = Field(default_factory=dict)
    """How models write tool calls, by the name that clients use; for the others their chat template tells."""
    default_max_tokens: int = Field(default=4096, gt=0)
    """Most output tokens of a request that names no limit; the context length bounds it further."""
    max_open_requests: int = Field(default=4096, gt=0)
    """Requests in any state, from their head to the end of their answer; further ones get 429 before they are read."""
    max_concurrent_requests: int = Field(default=512, gt=0)
    """Requests that this gateway answers at once; no more in all than the decode workers run at once."""
    max_in_flight_tokens: int = Field(default=0, ge=0)
    """Prompt and output tokens that running requests may hold, in all gateways together; 0 means no limit: sequences,
    prompts and KV blocks are bounded nevertheless."""
    max_project_tokens: int = Field(default=0, ge=0)
    """The same for the requests of each project; 0 means no limit."""
    max_queue: int = Field(default=1024, ge=0)
    """Requests that may wait here for their turn; further ones get 429."""
    max_project_queue: int = Field(default=0, ge=0)
    """The same for the requests of each project; 0 means half of `max_queue`."""
    project_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Shares of projects when requests wait, by name; 1 for those not named."""
    queue_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for a turn or for room on a worker before 429."""
    prefill_window_s: float = Field(default=2.0, ge=0)
    """Seconds of work that prefill workers may have before them, 0 for any; other prompts wait here for their turn."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Longest life of one request."""

    accept_timeout_s: float = Field(default=40.0, gt=0)
    """Longest wait for a decode worker to take a request; longer than its `reserve_timeout_s`."""
    first_token_timeout_s: float = Field(default=180.0, gt=0)
    """Longest wait, after a worker took a request, for its first token: prefill, transfer and queues."""
    token_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait between two tokens."""
    max_replays: int = Field(default=3, ge=0)
    """How often one sequence may be continued on another decode worker."""
    suspect_s: float = Field(default=1.0, gt=0)
    """How long a worker that failed a request is left alone before it is asked whether it serves; it is avoided until
    it said so."""
    prefill_candidates: int = Field(default=3, gt=0)
    """How many prefill workers are suggested to the decode worker."""
    min_fetch_tokens: int = Field(default=16, ge=1)
    """How much more of a prompt's KV another worker must have for the decode worker to fetch it there. A fetch takes
    some milliseconds: give what a worker computes in that time, one block on a CPU."""
    require_prefill: bool = False
    """Answer 503 instead of prefilling on the decode worker when no prefill worker can."""

    model_aliases: dict[str, str] = Field(default_factory=dict)
    """Further names of models, such as `gpt-4o`, each with the served model that answers to it."""
    lenient_objects: bool = False
    """Take ids of any form and bring limits of lists into their range: for tests that were written for a mock."""
    require_assistants_beta: bool = False
    """Refuse requests of the Assistants API without the header `OpenAI-Beta: assistants=v2`, as OpenAI did."""

    run_expiry_s: float = Field(default=600.0, gt=0)
    """Longest life of a run, waiting for tool outputs included."""
    response_expiry_s: float = Field(default=600.0, gt=0)
    """Longest life of a response until its end."""
    queue_runs: bool = False
    """Let a run wait for its turn when its thread has an active one, instead of answering 400; `if_active` in the body
    of a request goes before."""
    run_lease_s: float = Field(default=10.0, gt=0)
    """How long after its last sign of life the runs and responses of a gateway are left to it."""
    run_sweep_s: float = Field(default=1.0, gt=0)
    """How often runs and responses without a gateway are looked for."""
    run_flush_s: float = Field(default=0.05, ge=0)
    """Least time between two writes of the text of a run or response; what comes meanwhile is written and shown
    together."""
    run_patience_s: float = Field(default=60.0, ge=0)
    """How long a run or response waits for workers that fail or are gone before it fails; for busy ones it waits until
    it expires."""
    event_retention_s: float = Field(default=7 * 86400.0, gt=0)
    """How long the events of a run can be read after its end, and how long a response is kept after its own, or after
    the last response that went on from it began."""

    trust_loopback: bool = True
    """While no API key exists, callers from this host need none and belong to the project ``default``."""
    keys_refresh_s: float = Field(default=2.0, gt=0)
    """How old the known API keys may be."""

    keep_alive_s: float = Field(default=10.0, gt=0)
    """How long a stream may be silent before a comment is sent; its first one comes `queue_timeout_s` later, since a
    request that is refused while it waits shall get 429 and not the beginning of a stream."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for a client to read more of its stream; then its work ends and its connection is closed."""
    timeline_ttl_s: int = Field(default=900, gt=0)
    """How long the timeline of a request is kept."""
    text_threads: int = Field(default=2, gt=0)
    """Threads that render templates and encode long texts."""
    text_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time for rendering and encoding one request."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """How long new requests are still taken after SIGTERM, while load balancers notice."""
    drain_timeout_s: float = Field(default=60.0, ge=0)
    """How long running streams may take to end after that."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_json: bool = False
    """Write the log as JSON lines."""

    @model_validator(mode="after")
    def _events_outlive_jobs(self) -> Self:
        if self.event_retention_s < max(self.run_expiry_s, self.response_expiry_s):
            raise ValueError(
                "event_retention_s must not be less than run_expiry_s and response_expiry_s: the events of a run are "
                "needed as long as it lives"
            )
        return self
