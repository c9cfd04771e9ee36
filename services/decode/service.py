"""The decode service: reserve, let the prompt's KV come, then stream tokens."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from services.decode.handover import Handover
from services.decode.prompt import Prompt, PromptPeers, PromptServices
from services.decode.proof import Proof
from services.engine.output import HandedOver, SampledToken, TokenOutput
from services.engine.request import FinishReason, NewRequest
from services.errors import DeadlineExceeded
from services.kv.hashes import cache_seed
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.convert import duration_from_message, sampling_from_message
from services.telemetry.logs import get_logger
from services.worker.convert import reason_to_message, token_to_message
from services.worker.engine_thread import EngineEvent, EngineStream
from services.worker.exporter import Exporter

_log = get_logger(__name__)
_Context = grpc.aio.ServicerContext[object, object]


class DecodeServicer(tandem_pb2_grpc.DecodeServicer):
    """Answers gateways."""

    def __init__(self, services: PromptServices, exporter: Exporter, handover: Handover) -> None:
        self._services = services
        self._node = services.node
        self._exporter = exporter
        self._handover = handover

    @property
    def num_live(self) -> int:
        """Sequences that run, and blocks that a peer fetches or is yet to fetch."""
        return self._handover.num_running + self._handover.num_kept + self._exporter.num_live

    async def hand_over(self, *, waited_s: float, timeout_s: float) -> None:
        """Give running sequences to other decode workers if they had their time."""
        await self._handover.begin_if_due(waited_s=waited_s, timeout_s=timeout_s)

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Run one sequence to its end, within its deadline."""
        self._node.require_open()
        self._node.require_fingerprint(request.fingerprint)
        self._node.require_place(self.num_live, max_waiting=self._services.settings.max_waiting)
        timeout_s = duration_from_message("timeout_s", request.timeout_s, self._services.settings.request_timeout_s)
        proof = Proof(decode=self._node.member_id, clock=self._node.clock)
        try:
            with self._handover.running(request.request_id):
                async with asyncio.timeout(timeout_s), aclosing(self._run(request, proof)) as events:
                    async for event in events:
                        yield event
        except TimeoutError as error:
            raise DeadlineExceeded(f"The request did not end within {timeout_s:g} s.") from error
        finally:
            _log.event(
                "decode.ended",
                request_id=request.request_id,
                path=proof.path,
                prefill=proof.prefill or "-",
                reason=proof.reason or "-",
            )

    async def _run(self, request: pb.GenerateRequest, proof: Proof) -> AsyncGenerator[pb.GenerateEvent, None]:
        spec = await self._spec(request)
        prompt = Prompt(
            self._services,
            spec,
            peers=PromptPeers(
                candidates=request.prefill_candidates,
                require_prefill=request.require_prefill,
                kv_source=request.kv_source if request.HasField("kv_source") else None,
            ),
            project=request.project,
            proof=proof,
        )
        stream = self._node.engine.subscribe(spec.request_id)
        try:
            position = len(spec.resumed_output_token_ids)
            reservation = await prompt.reserve()
            load = self._node.load_message()
            yield pb.GenerateEvent(accepted=pb.Accepted(cached_tokens=reservation.num_cached_tokens, load=load))
            async with aclosing(prompt.fill(reservation)) as first_tokens:
                async for token in first_tokens:
                    proof.first_token()
                    yield self._tokens([token], position)
                    position += 1
            yield pb.GenerateEvent(path=proof.to_message())
            proof.mark()
            reason = prompt.finish_reason
            while reason is None:
                step = await _next_step(stream)
                handed_over = self._handover.keep(step.handed_over) if step.handed_over is not None else None
                if step.outputs and "decode_queue" not in proof.timings_ms:
                    proof.lap("decode_queue")
                    proof.first_token()
                    yield pb.GenerateEvent(path=proof.to_message())
                fresh = [output.token for output in step.outputs if not prompt.is_repeated(output.token)]
                if fresh:
                    yield self._tokens(fresh, position)
                    position += len(fresh)
                if handed_over is not None:
                    yield pb.GenerateEvent(handed_over=handed_over)
                    return
                reason = step.outputs[-1].finish_reason
            yield self._finished(reason, proof, position)
        finally:
            proof.publish(self._services.metrics)
            self._node.engine.unsubscribe(spec.request_id)
            prompt.abandon()

    def _tokens(self, tokens: Sequence[SampledToken], position: int) -> pb.GenerateEvent:
        self._services.metrics.output_tokens.inc(len(tokens))
        messages = [token_to_message(token) for token in tokens]
        return pb.GenerateEvent(tokens=pb.Tokens(tokens=messages, position=position))

    def _finished(self, reason: FinishReason, proof: Proof, num_output_tokens: int) -> pb.GenerateEvent:
        finished = pb.Finished(
            reason=reason_to_message(reason),
            proof=proof.to_message(),
            load=self._node.load_message(),
            output_tokens=num_output_tokens,
        )
        return pb.GenerateEvent(finished=finished)

    async def _spec(self, request: pb.GenerateRequest) -> NewRequest:
        self._node.require_tokens([*request.prompt_token_ids, *request.resumed_output_token_ids])
        spec = NewRequest(
            request_id=request.request_id,
            prompt_token_ids=tuple(request.prompt_token_ids),
            resumed_output_token_ids=tuple(request.resumed_output_token_ids),
            params=sampling_from_message(request.sampling),
            cache_seed=cache_seed(self._node.layout.fingerprint, request.project),
        )
        return await self._node.grammars.prepared(spec)


@dataclass(frozen=True)
class _Step:
    """What is new of a sequence: tokens, or that it goes on elsewhere, or both."""

    outputs: list[TokenOutput]
    handed_over: HandedOver | None


async def _next_step(stream: EngineStream) -> _Step:
    """Return all that is there, at least one token or the end."""
    while True:
        events: list[EngineEvent] = [await stream.next(), *stream.drain()]
        outputs = [event for event in events if isinstance(event, TokenOutput)]
        handed_over = next((event for event in events if isinstance(event, HandedOver)), None)
        if outputs or handed_over is not None:
            return _Step(outputs, handed_over)
