"""One attempt to let a prefill worker compute a prompt into reserved blocks.

Run ----->  accepted   progress ...   first token           pushed
notices          blocks 0..k   blocks k+1..n    (checked as they arrive)
                               first token goes out at once | sequence starts when all are verified
"""

from collections.abc import AsyncGenerator

import grpc

from services.decode.proof import Proof
from services.engine.output import SampledToken
from services.engine.request import NewRequest
from services.errors import PeerGone
from services.rpc import tandem_pb2 as pb
from services.rpc.convert import sampling_to_message
from services.worker.attempt import Attempt, Peer, read_event
from services.worker.convert import token_from_message


class PrefillAttempt(Attempt):
    """Lets one peer fill one reservation: ``run`` or ``fetch``, once."""

    async def run(
        self,
        spec: NewRequest,
        candidate: pb.PrefillCandidate,
        project: str,
        *,
        kv_source: pb.KVSource | None,
        step_timeout_s: float,
        proof: Proof,
    ) -> AsyncGenerator[SampledToken, None]:
        """Yield the first token as soon as it is known; return when every block arrived and was verified.

        ``kv_source`` has the blocks before the first one that is wanted.

        Raises:
            PeerError, IntegrityError, Overloaded, Unavailable: this candidate did not do it; leave the attempt.
        """
        await self._reached(candidate.address, step_timeout_s)
        self.peer = Peer(candidate.member_id, candidate.address, computes=True)
        call = self._channels.prefill(candidate.address).Run(self._run_request(spec, candidate, project, kv_source))
        with self._asking(call):
            token = await self._first_token(call, step_timeout_s, proof)
            yield token
            proof.mark()
            await self._verified(call, self.num_wanted, step_timeout_s)
            proof.lap("transfer")

    async def _first_token(
        self, call: grpc.aio.UnaryStreamCall[pb.RunRequest, pb.RunEvent], step_timeout_s: float, proof: Proof
    ) -> SampledToken:
        while True:
            event = await read_event(call, step_timeout_s)
            self._was_accepted = True  # whatever came: the first event may be lost
            match event.WhichOneof("event"):
                case "accepted":
                    proof.prefill_cached_tokens = event.accepted.cached_tokens
                case "first_token":
                    proof.timings_ms["prefill_queue"] = event.first_token.queue_ms
                    proof.timings_ms["prefill"] = event.first_token.prefill_ms
                    return token_from_message(event.first_token.token)
                case "pushed":
                    raise PeerGone("The prefill worker ended before it sent a token.")

    def _run_request(
        self, spec: NewRequest, candidate: pb.PrefillCandidate, project: str, kv_source: pb.KVSource | None
    ) -> pb.RunRequest:
        return pb.RunRequest(
            request_id=self.key.request_id,
            prompt_token_ids=spec.prompt_token_ids,
            resumed_output_token_ids=spec.resumed_output_token_ids,
            sampling=sampling_to_message(spec.params),
            target=self._target(self.num_wanted),
            project=project,
            member_id=candidate.member_id,
            kv_source=kv_source,
        )
