"""What files, vector stores and embeddings are served with."""

from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from random import Random

from services.gateway.documents.parsing import Parser, ParserLimits
from services.gateway.embeddings.client import EmbeddingClient
from services.gateway.embeddings.models import EmbeddingModels
from services.gateway.files.endings import end_file, end_response, end_upload
from services.gateway.files.storage import FileStorage
from services.gateway.files.upkeep import Upkeep
from services.gateway.models import ClusterView
from services.gateway.search.attachments import Attachments
from services.gateway.search.index import IndexCache
from services.gateway.search.ingestion import Ingestion, IngestionLimits
from services.gateway.search.queue import IngestionQueue
from services.gateway.search.searches import Searches
from services.gateway.search.stores import end_store
from services.gateway.settings import GatewaySettings
from services.gateway.store.kinds import FILE, RESPONSE, UPLOAD, VECTOR_STORE
from services.gateway.store.object_store import ObjectStore
from services.gateway.text.threads import TextThreads
from services.telemetry.clock import Clock


@dataclass(frozen=True)
class FileServices:
    """Finished collaborators of the endpoints of files, vector stores and embeddings."""

    storage: FileStorage
    embeddings: EmbeddingModels
    searches: Searches
    ingestions: IngestionQueue
    attachments: Attachments
    upkeep: Upkeep

    def followers(self, settings: GatewaySettings) -> list[tuple[str, Callable[[], Coroutine[None, None, None]]]]:
        """Return what goes on beside the server, by name."""
        upkeep = ("upkeep", lambda: self.upkeep.follow(settings.upkeep_interval_s))
        ingestions = [
            (f"ingestion {number}", lambda: self.ingestions.follow(settings.ingestion_interval_s))
            for number in range(settings.ingestion_tasks)
        ]
        return [upkeep, *ingestions]


def build_file_services(
    settings: GatewaySettings,
    view: ClusterView,
    client: EmbeddingClient,
    objects: ObjectStore,
    executor: Executor,
    clock: Clock,
    random: Random,
) -> FileServices:
    """Return the services, of which nothing runs yet."""
    storage, threads = FileStorage(objects), TextThreads(executor, settings.text_timeout_s)
    embeddings = EmbeddingModels(
        view, client, threads, random, aliases=settings.model_aliases, timeout_s=settings.embedding_timeout_s
    )
    limits = ParserLimits(settings.parse_memory_bytes, settings.parse_timeout_s, settings.max_text_bytes)
    bounds = IngestionLimits(
        lease_s=settings.ingestion_lease_s,
        patience_s=settings.ingestion_patience_s,
        max_tokens=settings.max_ingested_tokens,
    )
    ingestion = Ingestion(storage, Parser(limits), embeddings, clock, bounds)
    ends = {FILE: end_file, UPLOAD: end_upload, VECTOR_STORE: end_store, RESPONSE: end_response}
    ingestions = IngestionQueue(storage, ingestion, random, num_tasks=settings.ingestion_tasks)
    cache = IndexCache(settings.search_cache_bytes, settings.index_timeout_s)
    return FileServices(
        storage,
        embeddings,
        Searches(storage, embeddings, threads, clock, cache),
        ingestions,
        Attachments(storage, clock, ingestions.wake),
        Upkeep(storage, ends, clock, random),
    )
