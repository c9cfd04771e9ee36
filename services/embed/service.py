"""The services of an embedding worker: vectors for gateways, state for operators."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from services.cluster.registry import MemberLoad, Role
from services.embed.work import EmbeddingWork
from services.errors import Draining, IncompatiblePeer, InvalidRequest
from services.kv.card import ModelCard
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.convert import duration_from_message

MAX_SEQUENCES = 2048
_Context = grpc.aio.ServicerContext[object, object]
_DRAIN_POLL_S = 0.05
_LONGEST_DRAIN_S = 86_400.0


class EmbeddingServicer(tandem_pb2_grpc.EmbeddingServicer):
    """Answers gateways."""

    def __init__(self, card: ModelCard, work: EmbeddingWork) -> None:
        self.card = card
        self.work = work
        self.is_draining = False

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedReply:
        """Return the vectors of all sequences."""
        if self.is_draining:
            raise Draining("This embedding worker is leaving.", retry_after_s=1.0)
        if request.fingerprint != self.card.fingerprint:
            raise IncompatiblePeer(f"This worker serves {self.card.model_name}, not what was meant.")
        sequences = [list(sequence.token_ids) for sequence in request.sequences]
        self._check(sequences)
        vectors = await self.work.vectors(sequences, is_background=request.is_background)
        return pb.EmbedReply(dimensions=vectors.shape[1], vectors=vectors.astype("<f4").tobytes())

    @property
    def load(self) -> MemberLoad:
        """What membership publishes."""
        return MemberLoad(running=min(1, self.work.num_live), waiting=max(0, self.work.num_live - 1))

    def _check(self, sequences: list[list[int]]) -> None:
        if not 1 <= len(sequences) <= MAX_SEQUENCES:
            raise InvalidRequest(f"1 to {MAX_SEQUENCES} sequences are expected, not {len(sequences)}.")
        lengths = [len(sequence) for sequence in sequences]
        if min(lengths) < 1 or max(lengths) > self.card.context_length:
            raise InvalidRequest(f"A sequence has 1 to {self.card.context_length} tokens.")
        if max(map(max, sequences)) >= self.card.vocab_size:
            raise InvalidRequest(f"A token id is not in the vocabulary of {self.card.vocab_size}.")


class EmbedAdminServicer(tandem_pb2_grpc.AdminServicer):
    """Answers operators, tests and ``tandem status``."""

    def __init__(
        self,
        member_id: str,
        service: EmbeddingServicer,
        *,
        announce: Callable[[], Awaitable[None]],
        drain_timeout_s: float,
        counters: Callable[[], dict[str, float]],
    ) -> None:
        self._member_id = member_id
        self._service = service
        self._announce = announce
        self._drain_timeout_s = drain_timeout_s
        self._counters = counters

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusReply:
        """Tell identity and load; there is no KV, and so no ledger."""
        load = self._service.load
        return pb.StatusReply(
            member_id=self._member_id,
            role=Role.EMBED.value,
            model=self._service.card.model_name,
            fingerprint=self._service.card.fingerprint,
            load=pb.Load(running=load.running, waiting=load.waiting),
            counters=self._counters(),
            draining=self._service.is_draining,
            live=self._service.work.num_live,
        )

    async def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainReply:
        """Take no new work; answer when the running work ended or the time is over."""
        if request.member_id and request.member_id != self._member_id:
            raise IncompatiblePeer(f"{request.member_id} was expected here, but this is {self._member_id}.")
        wanted_s = duration_from_message("timeout_s", request.timeout_s, _LONGEST_DRAIN_S)
        return pb.DrainReply(remaining=await self.drain(wanted_s if request.timeout_s else self._drain_timeout_s))

    async def drain(self, timeout_s: float) -> int:
        """Say so, take no new work, and return how many requests are left when none runs or the time is over."""
        await self._announce()
        self._service.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._service.work.num_live:
                    await asyncio.sleep(_DRAIN_POLL_S)
        except TimeoutError:
            pass
        return self._service.work.num_live
