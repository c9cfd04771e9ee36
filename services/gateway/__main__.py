"""The gateway process: the only place that builds its objects."""

import asyncio
import secrets
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from services.cluster.background import Background
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import Role
from services.cluster.secret import load_or_create_secret
from services.cluster.view import MemberView, tell_addresses
from services.config import load
from services.errors import ConfigurationError, DeadlineExceeded
from services.gateway.admin import Readiness, admin_routes
from services.gateway.admission.capacity import MemberCapacity
from services.gateway.admission.front import FairAdmission
from services.gateway.admission.ledger import ShareLedger
from services.gateway.admission.limits import AdmissionLimits
from services.gateway.admission.redis_ledger import RedisShareLedger
from services.gateway.admission.shares import Shares
from services.gateway.answering.answers import Answers
from services.gateway.answering.decode_client import DecodeClient, GrpcDecodeClient
from services.gateway.answering.generation import GenerationLimits, GenerationServices
from services.gateway.answering.observer import AnswerObserver
from services.gateway.answering.recorder import TimelineRecorder
from services.gateway.answering.timeline import RedisTimelineStore, TimelineStore
from services.gateway.apis.openai.service import OpenAILimits, OpenAIServices
from services.gateway.drain import Drain
from services.gateway.embeddings.client import EmbeddingClient, GrpcEmbeddingClient
from services.gateway.file_services import FileServices, build_file_services
from services.gateway.job_services import JobParts, JobSurroundings, build_jobs
from services.gateway.jobs.service import Jobs
from services.gateway.jobs.sweeper import Sweeper
from services.gateway.keys import KeyStore, RedisKeyStore
from services.gateway.models import ClusterView, ModelCatalog
from services.gateway.redis_state import RedisState
from services.gateway.routing.cache_client import GrpcCacheClient
from services.gateway.routing.cache_watching import CacheClient, CacheWatching
from services.gateway.routing.health_client import GrpcHealthClient
from services.gateway.routing.prefixes import PrefixIndex
from services.gateway.routing.probing import HealthClient, Probing
from services.gateway.routing.router import Router
from services.gateway.routing.suspects import Suspects
from services.gateway.runs.file_search import FileSearch
from services.gateway.runs.model_turns import ModelTurns, TurnServices
from services.gateway.runs.turns import Turns
from services.gateway.sealing import Sealer
from services.gateway.settings import GatewaySettings
from services.gateway.store.object_store import ObjectStore
from services.gateway.store.quota import Quota
from services.gateway.store.schema import Schema
from services.gateway.text.threads import TextThreads
from services.gateway.web.app import AppParts, create_app
from services.gateway.web.auth import Authenticator, KnownKeys
from services.gateway.web.entrance import Entrance
from services.gateway.web.server import HttpServer
from services.resources import collect_garbage_seldom
from services.rpc.channel import Channels
from services.rpc.tls import tls_of
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.admin_server import serve_admin
from services.telemetry.clock import Clock, SystemClock
from services.telemetry.defects import count_defects
from services.telemetry.logs import configure_logging, get_logger
from services.telemetry.metrics import GatewayMetrics, process_registry

Follower = tuple[str, Callable[[], Coroutine[None, None, None]]]
"""What runs beside the server, and its name."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What a gateway reaches beyond itself; tests hand in twins."""

    view: ClusterView
    client: DecodeClient
    embedder: EmbeddingClient
    caches: CacheClient
    health: HealthClient
    keys: KeyStore
    timelines: TimelineStore
    shares: ShareLedger
    objects: ObjectStore
    executor: Executor
    secret: bytes
    """The cluster's."""
    registry: CollectorRegistry
    metrics: GatewayMetrics
    """Declared in ``registry``."""
    clock: Clock
    random: Random
    turns: Callable[[TurnServices], Turns] = ModelTurns
    """Makes what runs and responses ask of models."""


@dataclass(frozen=True)
class Gateway:
    """A finished gateway."""

    app: FastAPI
    catalog: ModelCatalog
    keys: KnownKeys
    recorder: TimelineRecorder
    shares: Shares
    readiness: Readiness
    drain: Drain
    probing: Probing
    caches: CacheWatching
    jobs: Jobs
    sweeper: Sweeper
    files: FileServices


def build(settings: GatewaySettings, around: Surroundings) -> Gateway:
    """Return a gateway that is ready to serve."""
    clock = around.clock
    drain, observer = Drain(clock), AnswerObserver(around.metrics, clock)
    shares = Shares(around.shares, secrets.token_hex(8), clock)
    admission = _admission(settings, around, shares)
    threads = TextThreads(around.executor, settings.text_timeout_s)
    catalog = _catalog(settings, around, threads)
    keys, recorder = KnownKeys(around.keys, clock, settings.keys_refresh_s), _recorder(settings, around)
    readiness = Readiness(around.view, drain)
    _watch(around.metrics, admission, around.view)
    suspects, prefixes = Suspects(clock, settings.suspect_s), PrefixIndex()
    generation = _generation(settings, around, suspects, prefixes)
    making = TurnServices(catalog, threads, admission, generation, observer, recorder, settings.default_max_tokens)
    files = _files(settings, around)
    search = FileSearch(files.searches, around.objects, catalog, threads, indexing_wait_s=settings.indexing_wait_s)
    jobs = _jobs(settings, around, making, files, search, drain)
    openai = OpenAIServices(
        entrance=_entrance(settings, keys, clock),
        catalog=catalog,
        threads=threads,
        answers=Answers(admission, generation, observer),
        recorder=recorder,
        limits=_limits(settings),
        objects=around.objects,
        runs=jobs.runs,
        responses=jobs.responses,
        reader=jobs.reader,
        files=files,
        is_lenient=settings.lenient_objects,
        requires_beta=settings.require_assistants_beta,
    )
    probing = Probing(suspects, around.view, around.health, clock, pause_s=settings.suspect_s)
    caches = CacheWatching(around.view, prefixes, around.caches, clock)
    app = create_app(_app_parts(settings, around, openai, observer, drain, readiness))
    return Gateway(
        app=app,
        catalog=catalog,
        keys=keys,
        recorder=recorder,
        shares=shares,
        readiness=readiness,
        drain=drain,
        probing=probing,
        caches=caches,
        jobs=jobs.jobs,
        sweeper=jobs.sweeper,
        files=files,
    )


def _catalog(settings: GatewaySettings, around: Surroundings, threads: TextThreads) -> ModelCatalog:
    return ModelCatalog(
        around.view,
        threads,
        around.clock,
        around.random,
        protocol_version=PROTOCOL_VERSION,
        aliases=settings.model_aliases,
        tool_formats=settings.tool_formats,
    )


def _recorder(settings: GatewaySettings, around: Surroundings) -> TimelineRecorder:
    lost = around.metrics.timelines_lost.inc
    return TimelineRecorder(around.timelines, around.clock, close_timeout_s=settings.redis_timeout_s, on_lost=lost)


def _app_parts(
    settings: GatewaySettings,
    around: Surroundings,
    openai: OpenAIServices,
    observer: AnswerObserver,
    drain: Drain,
    readiness: Readiness,
) -> AppParts:
    return AppParts(
        openai=openai,
        observer=observer,
        metrics=around.metrics,
        drain=drain,
        clock=around.clock,
        max_body_bytes=settings.max_body_bytes,
        max_file_bytes=settings.max_file_bytes,
        max_open_requests=settings.max_open_requests,
        admin=admin_routes(around.registry, readiness) if settings.serve_admin_on_main else None,
    )


def _files(settings: GatewaySettings, around: Surroundings) -> FileServices:
    return build_file_services(
        settings, around.view, around.embedder, around.objects, around.executor, around.clock, around.random
    )


def _entrance(settings: GatewaySettings, keys: KnownKeys, clock: Clock) -> Entrance:
    return Entrance(
        Authenticator(keys, trust_loopback=settings.trust_loopback),
        clock,
        request_timeout_s=settings.request_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )


def _limits(settings: GatewaySettings) -> OpenAILimits:
    return OpenAILimits(
        max_choices=settings.max_choices,
        default_max_tokens=settings.default_max_tokens,
        silent_start_s=settings.queue_timeout_s + settings.keep_alive_s,
        keep_alive_s=settings.keep_alive_s,
        send_timeout_s=settings.send_timeout_s,
        max_file_bytes=settings.max_file_bytes,
        max_embedding_tokens=settings.max_embedding_tokens,
    )


def _admission(settings: GatewaySettings, around: Surroundings, shares: Shares) -> FairAdmission:
    limits = AdmissionLimits(
        max_requests=settings.max_concurrent_requests,
        max_waiting=settings.max_queue,
        max_project_waiting=settings.max_project_queue or -(-settings.max_queue // 2),
        max_wait_s=settings.queue_timeout_s,
        max_tokens=settings.max_in_flight_tokens,
        max_project_tokens=settings.max_project_tokens,
        weights=settings.project_weights,
    )
    capacity = MemberCapacity(around.view, settings.prefill_window_s)
    return FairAdmission(limits, shares, capacity, around.clock, around.metrics)


def _generation(
    settings: GatewaySettings, around: Surroundings, suspects: Suspects, prefixes: PrefixIndex
) -> GenerationServices:
    router = Router(
        around.view,
        suspects,
        around.random,
        prefixes=prefixes,
        num_prefill_candidates=settings.prefill_candidates,
        min_fetch_tokens=settings.min_fetch_tokens,
        require_prefill=settings.require_prefill,
    )
    limits = GenerationLimits(
        accept_timeout_s=settings.accept_timeout_s,
        first_token_timeout_s=settings.first_token_timeout_s,
        token_timeout_s=settings.token_timeout_s,
        room_timeout_s=settings.queue_timeout_s,
        max_replays=settings.max_replays,
        require_prefill=settings.require_prefill,
    )
    return GenerationServices(router, around.client, around.clock, limits)


def _jobs(
    settings: GatewaySettings,
    around: Surroundings,
    making: TurnServices,
    files: FileServices,
    search: FileSearch,
    drain: Drain,
) -> JobParts:
    shared = JobSurroundings(
        objects=around.objects,
        attachments=files.attachments,
        catalog=making.catalog,
        threads=making.threads,
        sealer=Sealer(around.secret, "compaction"),
        clock=around.clock,
        drain=drain,
        random=around.random,
    )
    metrics = around.metrics
    parts = build_jobs(settings, shared, around.turns(making), search, metrics.jobs_taken.inc)
    metrics.jobs_held.set_function(lambda: len(parts.jobs.held()))
    return parts


def _watch(metrics: GatewayMetrics, admission: FairAdmission, view: ClusterView) -> None:
    metrics.waiting.set_function(lambda: admission.num_waiting)
    metrics.members_stale.set_function(lambda: view.is_stale)
    for role in Role:
        metrics.members.labels(role=role.value).set_function(_counting(view, role))


def _counting(view: ClusterView, role: Role) -> Callable[[], float]:
    return lambda: sum(member.role is role for member in view.members())


async def run(settings: GatewaySettings) -> None:
    """Serve until told to leave.

    Raises:
        ConfigurationError: an address cannot be used, the secret cannot be read, or Redis has another layout of keys.
        DeadlineExceeded: another gateway brings the keys up to date, for too long.
    """
    clock = SystemClock()
    secret = load_or_create_secret(settings.secret_file)
    prometheus = process_registry()
    count_defects(prometheus)
    metrics = GatewayMetrics(prometheus)
    async with AsyncExitStack() as stack:
        url, timeout_s = settings.redis_url, settings.redis_timeout_s
        registry = RedisRegistry(url, secret, clock, timeout_s=timeout_s, on_ignored=metrics.members_ignored.inc)
        stack.push_async_callback(registry.close)
        state = RedisState(url, timeout_s)
        stack.push_async_callback(state.close)
        await stack.enter_async_context(Schema(state, clock).prepared())
        channels = Channels(secret, tls_of(settings))
        stack.push_async_callback(channels.close)
        view = await stack.enter_async_context(MemberView(registry, clock, settings.members_interval_s))
        around = Surroundings(
            view=view,
            client=GrpcDecodeClient(channels),
            embedder=GrpcEmbeddingClient(channels),
            caches=GrpcCacheClient(channels),
            health=GrpcHealthClient(channels),
            keys=RedisKeyStore(state, clock),
            timelines=RedisTimelineStore(state, settings.timeline_ttl_s),
            shares=RedisShareLedger(state),
            objects=ObjectStore(state, Quota(settings.max_project_objects, settings.max_project_file_bytes)),
            executor=stack.enter_context(ThreadPoolExecutor(settings.text_threads, "text")),
            secret=secret,
            registry=prometheus,
            metrics=metrics,
            clock=clock,
            random=Random(),
        )
        gateway = build(settings, around)
        await stack.enter_async_context(gateway.recorder)
        stack.push_async_callback(gateway.shares.close)
        stack.push_async_callback(gateway.jobs.close)
        closing = ("channels", lambda: tell_addresses(view, channels.keep_only))
        _start((*_followers(gateway, settings), *gateway.files.followers(settings), closing), stack, clock)
        await stack.enter_async_context(
            serve_admin(settings.admin_host, settings.admin_port, around.registry, gateway.readiness)
        )
        collect_garbage_seldom()
        await HttpServer(gateway.app, settings, gateway.drain).run()


def _start(followers: Sequence[Follower], stack: AsyncExitStack, clock: Clock) -> None:
    """Run something beside the server until ``stack`` is left."""
    for name, follow in followers:
        following = Background(name, _log, clock)
        following.start(follow)
        stack.push_async_callback(following.close)


def _followers(gateway: Gateway, settings: GatewaySettings) -> tuple[Follower, ...]:
    """Return what runs beside the server, by name."""
    return (
        ("model catalog", gateway.catalog.follow),
        ("keys", gateway.keys.follow),
        ("shares", gateway.shares.follow),
        ("probing", gateway.probing.follow),
        ("caches", gateway.caches.follow),
        ("jobs", lambda: gateway.sweeper.follow(settings.run_sweep_s)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a gateway; return the exit status."""
    try:
        settings = load(GatewaySettings, sys.argv[1:] if argv is None else argv, prog="tandem gateway").settings
        configure_logging(level=settings.log_level, as_json=settings.log_json, process="gateway")
        with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
            runner.run(run(settings))
    except (ConfigurationError, DeadlineExceeded) as error:
        sys.stderr.write(f"{error.message}\n")
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
