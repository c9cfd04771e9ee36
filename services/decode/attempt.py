"""One attempt to let a prefill worker fill reserved blocks. An attempt owns its blocks, epoch and notices.

Run ----->  accepted   progress ...   first token           pushed
notices          blocks 0..k   blocks k+1..n    (checked as they arrive)
                               first token goes out at once | sequence starts when all are verified
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc

from services.decode.arrivals import Arrivals
from services.decode.proof import Proof
from services.engine.output import Reservation, SampledToken
from services.engine.request import AttemptKey, NewRequest, Outcome
from services.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    IncompatiblePeer,
    InternalError,
    Overloaded,
    PeerError,
    PeerGone,
    PeerStalled,
    RequestError,
)
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.convert import sampling_to_message
from services.rpc.errors import translated
from services.worker.convert import endpoint_to_message, token_from_message
from services.worker.node import Node

_REFUSALS = (Overloaded, Draining, IncompatiblePeer)
_Call = grpc.aio.UnaryStreamCall[pb.RunRequest, pb.RunEvent]


@dataclass(frozen=True)
class Leaving:
    """What is known of an attempt's blocks when it is left."""

    num_arrived: int
    outcome: Outcome


class Attempt:
    """Runs one candidate for one reservation."""

    def __init__(
        self, node: Node, channels: Channels, arrivals: Arrivals, *, reservation: Reservation, key: AttemptKey
    ) -> None:
        self.key = key
        self.reservation = reservation
        self._node = node
        self._channels = channels
        self._arrivals = arrivals
        self._arrival = arrivals.open(key, reservation, node.sealer)
        self._outcome = Outcome.NOTHING_POSTED
        self._was_accepted = False

    def leave(self) -> Leaving:
        """Stop to accept notices and say what is known of the blocks."""
        self._arrivals.close(self.key)
        return Leaving(self._arrival.num_arrived, self._outcome)

    @property
    def num_wanted(self) -> int:
        """Blocks that the candidate was asked for."""
        return len(self.reservation.block_table) - self.reservation.first_wanted

    async def run(
        self, spec: NewRequest, candidate: pb.PrefillCandidate, project: str, *, step_timeout_s: float, proof: Proof
    ) -> AsyncGenerator[SampledToken, None]:
        """Yield the first token as soon as it is known; return when every block arrived and was verified.

        Raises:
            PeerError, IntegrityError, Overloaded, Unavailable: this candidate did not do it; leave the attempt.
        """
        async with _progress_within(step_timeout_s):
            await self._channels.connected(candidate.address)
        self._outcome = Outcome.UNKNOWN
        call = self._channels.prefill(candidate.address).Run(self._request(spec, candidate, project))
        self._node.transfers.expect(1)
        try:
            token = await self._first_token(call, step_timeout_s, proof)
            yield token
            proof.mark()
            await self._all_verified(call, step_timeout_s)
            proof.lap("transfer")
        except _REFUSALS:
            if not self._was_accepted:
                self._outcome = Outcome.NOTHING_POSTED
            raise
        finally:
            self._node.transfers.expect(-1)
            call.cancel()

    async def _first_token(self, call: _Call, step_timeout_s: float, proof: Proof) -> SampledToken:
        while True:
            event = await _read(call, step_timeout_s)
            match event.WhichOneof("event"):
                case "accepted":
                    self._was_accepted = True
                    proof.prefill_cached_tokens = event.accepted.cached_tokens
                case "first_token":
                    proof.timings_ms["prefill_queue"] = event.first_token.queue_ms
                    proof.timings_ms["prefill"] = event.first_token.prefill_ms
                    return token_from_message(event.first_token.token)
                case "pushed":
                    raise PeerGone("The prefill worker ended before it sent a token.")

    async def _all_verified(self, call: _Call, step_timeout_s: float) -> None:
        """Wait for the data; the call tells when the sender fails, the notices when everything is here."""
        verified = asyncio.create_task(self._arrival.all_verified())
        pushed = asyncio.create_task(_read(call, step_timeout_s))
        try:
            await asyncio.wait({verified, pushed}, return_when=asyncio.FIRST_COMPLETED)
            if not verified.done():
                pushed.result()
                async with _progress_within(step_timeout_s):
                    await verified
            verified.result()
        finally:
            verified.cancel()
            pushed.cancel()
            await asyncio.gather(verified, pushed, return_exceptions=True)

    def _request(self, spec: NewRequest, candidate: pb.PrefillCandidate, project: str) -> pb.RunRequest:
        first = self.reservation.first_wanted
        target = pb.KVTarget(
            endpoint=endpoint_to_message(self._node.transfers.endpoint),
            epoch=self.key.epoch,
            first_block=first,
            block_ids=self.reservation.block_table[first:],
        )
        return pb.RunRequest(
            request_id=self.key.request_id,
            prompt_token_ids=spec.prompt_token_ids,
            resumed_output_token_ids=spec.resumed_output_token_ids,
            sampling=sampling_to_message(spec.params),
            target=target,
            project=project,
            member_id=candidate.member_id,
        )


async def _read(call: _Call, timeout_s: float) -> pb.RunEvent:
    with _failures_of_the_peer(), translated():
        async with _progress_within(timeout_s):
            event = await call.read()
    if not isinstance(event, pb.RunEvent):
        raise PeerGone("The prefill worker ended the call early.")
    return event


@contextmanager
def _failures_of_the_peer() -> Iterator[None]:
    """Make a defect or an end of the peer a reason to try the next one, not the end of the request.

    A request that was accepted here is not the caller's fault anywhere else.
    """
    try:
        yield
    except RequestError as error:
        raise IncompatiblePeer(f"The prefill worker does not take this prompt: {error.message}") from error
    except (InternalError, Cancelled, DeadlineExceeded) as error:
        raise PeerError(f"The prefill worker failed: {error.message}") from error


@asynccontextmanager
async def _progress_within(timeout_s: float) -> AsyncGenerator[None, None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise PeerStalled(f"The prefill worker made no progress for {timeout_s:g} s.") from error
