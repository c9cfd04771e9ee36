"""The embedding models that workers serve, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy
from numpy.typing import NDArray

from services.cluster.registry import Member, Role
from services.errors import (
    DeadlineExceeded,
    InternalError,
    ModelNotFound,
    NoEmbeddingWorker,
    Overloaded,
    PeerError,
    Unavailable,
)
from services.gateway.embeddings.client import EmbeddingClient
from services.gateway.embeddings.text import EmbeddingTokenizer
from services.gateway.models import ClusterView
from services.gateway.text.threads import TextThreads
from services.kv.card import ModelCard
from services.rpc import tandem_pb2 as pb
from services.rpc.versions import understands
from services.telemetry.logs import get_logger

MAX_SEQUENCES = 256
"""Of one call to a worker."""
ADVICE = "Start one with `tandem embed`; `tandem up` starts one unless told --embed 0."

Vectors = NDArray[numpy.float32]
_log = get_logger(__name__)


@dataclass(frozen=True)
class EmbeddingModel:
    """One version of an embedding model."""

    card: ModelCard
    tokenizer: EmbeddingTokenizer

    @property
    def space(self) -> str:
        """Names what the vectors mean: only vectors of one space can be compared."""
        return self.card.fingerprint


class EmbeddingModels:
    """Finds embedding models and has workers run them."""

    def __init__(
        self,
        view: ClusterView,
        client: EmbeddingClient,
        threads: TextThreads,
        random: Random,
        *,
        aliases: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self._view = view
        self._client = client
        self._threads = threads
        self._random = random
        self._aliases = aliases
        self._timeout_s = timeout_s
        self._loaded: dict[str, EmbeddingModel] = {}

    def names(self) -> list[str]:
        """Return the names of the models that are served now."""
        return sorted({member.model_name for member in self._workers()})

    async def cards(self) -> list[ModelCard]:
        """Return a card of each model that is served now, by name.

        Raises:
            StateUnavailable: a card was never read and Redis cannot be reached.
        """
        by_name = {member.model_name: member.card_digest for member in self._workers()}
        return [await self._view.card(digest) for _, digest in sorted(by_name.items())]

    async def resolve(self, name: str | None = None) -> EmbeddingModel:
        """Return the model that clients call ``name``; the first one if none is named.

        Raises:
            NoEmbeddingWorker: there is no embedding worker at all.
            ModelNotFound: there are, but not for this model.
            StateUnavailable: its card was never read and Redis cannot be reached.
        """
        names = self.names()
        if not names:
            raise NoEmbeddingWorker(f"No embedding worker is up. {ADVICE}")
        served = names[0] if name is None else name if name in names else self._aliases.get(name, name)
        for member in self._workers():
            if member.model_name == served:
                return await self._load(member.card_digest)
        raise ModelNotFound(
            f"The model '{name}' does not exist or makes no embeddings; served here: {', '.join(names)}.",
            param="model",
        )

    async def vectors(
        self, model: EmbeddingModel, sequences: Sequence[Sequence[int]], request_id: str, *, is_background: bool = False
    ) -> Vectors:
        """Return a vector of length 1 for each sequence, ``[num_sequences, dimensions]``.

        Raises:
            NoEmbeddingWorker: nobody serves the model any more.
            TandemError: what the last worker said that was asked.
        """
        parts = []
        for first in range(0, len(sequences), MAX_SEQUENCES):
            request = pb.EmbedRequest(
                request_id=request_id,
                fingerprint=model.card.fingerprint,
                sequences=[pb.TokenSequence(token_ids=ids) for ids in sequences[first : first + MAX_SEQUENCES]],
                is_background=is_background,
            )
            parts.append(await self._ask(request, len(sequences[first : first + MAX_SEQUENCES])))
        return numpy.concatenate(parts)

    async def _ask(self, request: pb.EmbedRequest, num_sequences: int) -> Vectors:
        failure: PeerError | Unavailable | Overloaded | DeadlineExceeded | None = None
        for member in self._candidates(request.fingerprint):
            try:
                reply = await self._client.embed(member.address, request, self._timeout_s)
            except (PeerError, Unavailable, Overloaded, DeadlineExceeded) as error:
                _log.warning("embedding.worker_failed", member=member.member_id, code=error.code, reason=error.message)
                failure = error
                continue
            return _vectors_in(reply, num_sequences)
        raise failure or NoEmbeddingWorker(f"No embedding worker serves this model now. {ADVICE}")

    def _candidates(self, fingerprint: str) -> list[Member]:
        """Return the workers for a model, the least busy first."""
        fit = [member for member in self._workers() if member.fingerprint == fingerprint]
        self._random.shuffle(fit)
        return sorted(fit, key=lambda member: member.load.running + member.load.waiting)

    def _workers(self) -> list[Member]:
        return [
            member
            for member in self._view.members()
            if member.role is Role.EMBED and not member.draining and understands(member.protocol_version)
        ]

    async def _load(self, digest: str) -> EmbeddingModel:
        if (model := self._loaded.get(digest)) is None:
            card = await self._view.card(digest)
            model = EmbeddingModel(card, await self._threads.run(lambda: EmbeddingTokenizer(card)))
            self._loaded = {digest: model, **dict(list(self._loaded.items())[:3])}
        return model


def _vectors_in(reply: pb.EmbedReply, num_sequences: int) -> Vectors:
    vectors = numpy.frombuffer(reply.vectors, dtype="<f4")
    if reply.dimensions < 1 or vectors.size != num_sequences * reply.dimensions:
        raise InternalError("An embedding worker sent another number of vectors than it was asked for.")
    return vectors.reshape(num_sequences, reply.dimensions)
