"""What runs and responses are served with."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from services.gateway.drain import Drain
from services.gateway.jobs.execution import JobKind
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.held import HeldJob, LeaseTerms
from services.gateway.jobs.reader import EventReader
from services.gateway.jobs.service import Jobs, JobServices
from services.gateway.jobs.storage import JobStorage
from services.gateway.jobs.sweeper import Sweeper
from services.gateway.models import ModelCatalog
from services.gateway.responses.compaction import Compactor
from services.gateway.responses.history import ContextReader
from services.gateway.responses.service import Responses, ResponseServices
from services.gateway.responses.work import ResponseWork
from services.gateway.runs.file_search import FileSearch
from services.gateway.runs.history_places import MAX_HISTORIES, HistoryPlaces
from services.gateway.runs.service import Runs
from services.gateway.runs.turn_log import TurnLog
from services.gateway.runs.turns import Turns
from services.gateway.runs.work import RunServices, RunWork
from services.gateway.sealing import Sealer
from services.gateway.search.attachments import Attachments
from services.gateway.settings import GatewaySettings
from services.gateway.store.kinds import RESPONSE, RUN
from services.gateway.store.object_store import ObjectStore
from services.gateway.text.threads import TextThreads
from services.telemetry.clock import Clock


@dataclass(frozen=True)
class RunParts:
    """What the endpoints of runs work with."""

    service: Runs
    expiry_s: float
    queues_by_default: bool
    """Whether a run waits for its turn unless the client says otherwise."""


@dataclass(frozen=True)
class ResponseParts:
    """What the endpoints of responses and conversations work with."""

    service: Responses
    compactor: Compactor
    sealer: Sealer
    """Opens what the compactor made."""


@dataclass(frozen=True)
class JobParts:
    """Finished collaborators of the endpoints of runs and responses, and what goes on beside the server."""

    runs: RunParts
    responses: ResponseParts
    reader: EventReader
    jobs: Jobs
    sweeper: Sweeper


@dataclass(frozen=True)
class JobSurroundings:
    """What jobs share with the rest of the gateway."""

    objects: ObjectStore
    attachments: Attachments
    catalog: ModelCatalog
    threads: TextThreads
    sealer: Sealer
    clock: Clock
    drain: Drain
    random: Random


def build_jobs(
    settings: GatewaySettings,
    around: JobSurroundings,
    turns: Turns,
    search: FileSearch,
    on_taken: Callable[[], None],
) -> JobParts:
    """Return the services, of which nothing runs yet; ``on_taken`` counts jobs that are taken over."""
    objects, clock = around.objects, around.clock
    contexts = ContextReader(objects, around.catalog, around.sealer)
    storage, feed = JobStorage(objects, [RUN, RESPONSE]), Feed()
    terms = LeaseTerms(clock, settings.run_lease_s, settings.event_retention_s)
    turn_log = TurnLog(turns, clock, settings.run_flush_s)
    places = HistoryPlaces(MAX_HISTORIES, settings.queue_timeout_s)
    compacting = HistoryPlaces(MAX_HISTORIES, settings.queue_timeout_s)  # much longer than for a prompt

    run_services = RunServices(turn_log, around.catalog, search, around.attachments, places, contexts.read_by_runs)

    def run_work(held: HeldJob) -> RunWork:
        return RunWork(held, run_services)

    kinds = [
        JobKind(RUN, run_work),
        JobKind(RESPONSE, lambda held: ResponseWork(held, contexts, turn_log, search, places)),
    ]
    jobs = Jobs(JobServices(storage, feed, terms, kinds, settings.run_patience_s, on_taken))
    return JobParts(
        RunParts(Runs(jobs, objects, around.attachments, run_work), settings.run_expiry_s, settings.queue_runs),
        ResponseParts(
            Responses(ResponseServices(jobs, objects, contexts, turns, places, terms, settings.response_expiry_s)),
            Compactor(contexts, around.catalog, around.threads, turns, around.sealer, compacting),
            around.sealer,
        ),
        EventReader(storage, feed, jobs.is_here, wait_s=min(1.0, settings.redis_timeout_s / 2)),
        jobs,
        Sweeper(jobs, storage, terms, around.drain, around.random),
    )
