"""The prefill service: compute a prompt, push each chunk's KV while the next one computes, sample the first token."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from services.engine.output import Admitted, ChunkComputed, FinalBlocks, TokenOutput
from services.engine.request import AttemptKey, NewRequest
from services.engine.scheduler import Scheduler
from services.errors import InvalidRequest, Overloaded
from services.kv.hashes import cache_seed
from services.prefill.settings import PrefillSettings
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.convert import sampling_from_message
from services.telemetry.logs import get_logger
from services.worker.convert import endpoint_from_message, reason_to_message, token_to_message
from services.worker.engine_thread import EngineEvent, EngineStream
from services.worker.exporter import Exporter
from services.worker.node import Node
from services.worker.outgoing import Outgoing
from services.worker.pulling import Pulling

_log = get_logger(__name__)
_CONNECT_TIMEOUT_S = 10.0
_Context = grpc.aio.ServicerContext[object, object]


@dataclass
class _Moments:
    accepted_s: float
    first_chunk_s: float | None = None


class PrefillServicer(tandem_pb2_grpc.PrefillServicer):
    """Answers decode workers."""

    def __init__(self, node: Node, settings: PrefillSettings, exporter: Exporter, pulling: Pulling) -> None:
        self._node = node
        self._settings = settings
        self._exporter = exporter
        self._pulling = pulling

    @property
    def num_live(self) -> int:
        """Attempts that compute or have a write outstanding."""
        return self._exporter.num_live

    async def hand_over(self, *, waited_s: float, timeout_s: float) -> None:
        """Do nothing: a prompt is soon computed, and who waits for it asks the next candidate if it is not."""

    async def Connect(self, request: pb.ConnectRequest, context: _Context) -> pb.ConnectReply:
        """Warm the pair before its first request."""
        await self._node.transfers.connect(endpoint_from_message(request.endpoint), timeout_s=_CONNECT_TIMEOUT_S)
        return pb.ConnectReply(member_id=self._node.member_id)

    async def Run(self, request: pb.RunRequest, context: _Context) -> AsyncGenerator[pb.RunEvent, None]:
        """Compute and push one prompt."""
        self._node.require_open()
        self._node.require_member(request.member_id)
        self._node.require_fingerprint(request.target.endpoint.fingerprint)
        self._node.require_place(self.num_live, max_waiting=self._settings.max_waiting)
        spec = await self._spec(request)
        key = AttemptKey(request.request_id, request.target.epoch)
        async with self._exporter.attempt(key, request.target, on_settled=_log_settled) as outgoing:
            try:
                if request.HasField("kv_source"):
                    await self._pulling.pull(spec, request.target.first_block, request.kv_source)
                async with aclosing(self._compute(spec, outgoing)) as events:
                    async for event in events:
                        yield event
                await outgoing.all_pushed()
                yield pb.RunEvent(pushed=pb.RunPushed(blocks=outgoing.num_blocks, load=self._node.load_message()))
            finally:
                outgoing.close()
                self._node.engine.unsubscribe(spec.request_id)
                self._node.engine.post(lambda scheduler: scheduler.cancel(spec.request_id))

    async def Settle(self, request: pb.SettleRequest, context: _Context) -> pb.SettleReply:
        """Answer once no write of the attempt is outstanding and none will be posted."""
        return await self._exporter.settle(request)

    async def _compute(self, spec: NewRequest, outgoing: Outgoing) -> AsyncGenerator[pb.RunEvent, None]:
        stream = self._node.engine.subscribe(spec.request_id)
        moments = _Moments(self._node.clock.now())
        admitted = await self._node.engine.call(lambda scheduler: self._admit(scheduler, spec))
        _log.event("prefill.accepted", request_id=spec.request_id, cached_tokens=admitted.num_cached_tokens)
        accepted = pb.RunAccepted(cached_tokens=admitted.num_cached_tokens, load=self._node.load_message())
        yield pb.RunEvent(accepted=accepted)
        num_computed = 0
        while True:
            match await self._next_event(stream):
                case FinalBlocks() as final:
                    outgoing.post(final)
                case ChunkComputed(num_computed_tokens=num_computed, step_began_s=began_s):
                    outgoing.step_began(began_s)
                    moments.first_chunk_s = moments.first_chunk_s or began_s
                    yield pb.RunEvent(progress=pb.RunProgress(computed_tokens=num_computed))
                case None:
                    yield pb.RunEvent(progress=pb.RunProgress(computed_tokens=num_computed))
                case TokenOutput() as output:
                    yield pb.RunEvent(first_token=self._first_token(output, moments))
                    return

    async def _next_event(self, stream: EngineStream) -> EngineEvent | None:
        """Return what happened to the request, or None when the engine was at work on others for a while."""
        engine = self._node.engine
        while True:
            num_steps = engine.num_steps
            try:
                async with asyncio.timeout(self._settings.progress_interval_s):
                    return await stream.next()
            except TimeoutError:
                if engine.num_steps > num_steps:
                    return None

    def _admit(self, scheduler: Scheduler, spec: NewRequest) -> Admitted:
        """Queue the prompt and seal what the cache already has (on the engine thread)."""
        load = scheduler.load()
        num_tokens = len(spec.prompt_token_ids) + len(spec.resumed_output_token_ids)
        if load.num_waiting and load.num_queued_tokens + num_tokens > self._settings.max_queued_tokens:
            raise Overloaded(f"{load.num_queued_tokens} prompt tokens are waiting here already.", retry_after_s=1.0)
        admitted = scheduler.add(spec)
        if admitted.cached is not None:
            self._node.engine.emit(self._node.sealer.seal(admitted.cached))
        return admitted

    async def _spec(self, request: pb.RunRequest) -> NewRequest:
        num_tokens = len(request.prompt_token_ids) + len(request.resumed_output_token_ids)
        wanted = self._node.layout.num_blocks(num_tokens) - request.target.first_block
        if wanted != len(request.target.block_ids):
            raise InvalidRequest(f"The target names {len(request.target.block_ids)} blocks, the prompt needs {wanted}.")
        self._node.require_tokens([*request.prompt_token_ids, *request.resumed_output_token_ids])
        spec = NewRequest(
            request_id=str(AttemptKey(request.request_id, request.target.epoch)),
            prompt_token_ids=tuple(request.prompt_token_ids),
            resumed_output_token_ids=tuple(request.resumed_output_token_ids),
            params=sampling_from_message(request.sampling),
            cache_seed=cache_seed(self._node.layout.fingerprint, request.project),
            export=True,
        )
        return await self._node.grammars.prepared(spec)

    def _first_token(self, output: TokenOutput, moments: _Moments) -> pb.RunFirstToken:
        now_s = self._node.clock.now()
        first_chunk_s = moments.first_chunk_s or now_s
        return pb.RunFirstToken(
            token=token_to_message(output.token),
            finish_reason=reason_to_message(output.finish_reason),
            queue_ms=1e3 * (first_chunk_s - moments.accepted_s),
            prefill_ms=1e3 * (now_s - first_chunk_s),
        )


def _log_settled(outgoing: Outgoing) -> None:
    _log.event(
        "prefill.settled",
        request_id=str(outgoing.attempt),
        blocks=outgoing.num_blocks,
        pushes=outgoing.num_pushes,
        overlapped=outgoing.num_overlapped,
        failed=outgoing.has_failed,
    )
