"""One sequence from prompt ids to output ids, whatever happens to the workers on the way.

route -> Generate -> tokens ... -> end
  ^          |           |
  |       refused    worker lost, or it leaves: the next worker gets prompt + emitted tokens,
  +----------+-----------+                      and is told who has their KV if somebody does
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

from services.cluster.registry import Member
from services.errors import (
    DeadlineExceeded,
    Draining,
    IntegrityError,
    InternalError,
    NoDecodeWorker,
    NoPrefillWorker,
    Overloaded,
    PeerError,
    PeerGone,
    PeerStalled,
    TandemError,
    TokenDivergence,
    Unavailable,
)
from services.gateway.answering.decode_client import DecodeClient, PacedEvents
from services.gateway.answering.proof import PathProof
from services.gateway.answering.sequence import (
    Accepted,
    Ended,
    FinishReason,
    NewTokens,
    SequenceEvent,
    SequenceRequest,
    completed_proof,
    load_of,
    proof_of,
    tokens_of,
    unknown_proof,
)
from services.gateway.routing.router import Flight, Route, Router, RouteRequest
from services.kv.hash_chains import HashChains
from services.kv.hashes import BlockHash, cache_seed
from services.rpc import tandem_pb2 as pb
from services.rpc.convert import sampling_to_message
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0
_MAX_CHAIN_BYTES = 32 * 2**20  # some four million tokens of long prompts
_REASONS: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}

_log = get_logger(__name__)


@dataclass(frozen=True)
class GenerationLimits:
    """How long to wait for what, and how often to try again."""

    accept_timeout_s: float
    first_token_timeout_s: float
    token_timeout_s: float
    room_timeout_s: float
    """For room on a worker, and for a worker to appear after the last one was lost in mid-stream."""
    max_replays: int
    require_prefill: bool


@dataclass(frozen=True)
class GenerationServices:
    """What every generation works with."""

    router: Router
    client: DecodeClient
    clock: Clock
    limits: GenerationLimits
    hash_chains: HashChains = field(default_factory=lambda: HashChains(_MAX_CHAIN_BYTES))
    """Of prompts that may come back with another turn."""


class Generation:
    """The life of one sequence; read ``events`` once, ``proof`` at any time."""

    def __init__(self, request: SequenceRequest, services: GenerationServices) -> None:
        self._request = request
        self._router = services.router
        self._client = services.client
        self._clock = services.clock
        self._limits = services.limits
        self._hash_chains = services.hash_chains
        self._output = list(request.resumed_token_ids)
        self._avoid: set[str] = set()
        self._refusal: Overloaded | None = None
        self._is_accepted = False
        self._is_running = False
        """Whether the worker of the current attempt took the sequence: what it says now is no refusal."""
        self._waiting_since_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._num_attempts = 0
        self.replay_codes: list[str] = []
        """Error code of each loss of a worker that was made good so far."""
        self.num_handovers = 0
        """How often a worker that leaves gave the sequence away."""
        self._kv_source: pb.KVSource | None = None
        self._timings_ms = dict(request.timings_ms)
        self._proof = unknown_proof("")

    @property
    def proof(self) -> PathProof:
        """Which way the sequence went, as far as is known."""
        return completed_proof(
            self._proof,
            timings_ms=self._timings_ms,
            num_replays=len(self.replay_codes),
            num_handovers=self.num_handovers,
        )

    async def events(self) -> AsyncGenerator[SequenceEvent, None]:
        """Yield what happens, ending with ``Ended``; closing the generator cancels the sequence.

        Raises:
            NoDecodeWorker, NoPrefillWorker: nobody can take the sequence.
            Overloaded: nobody had room in time.
            DeadlineExceeded: the request's deadline passed.
            TandemError: what the last worker raised.
        """
        while (reason := self._own_end()) is None:
            route, is_over = await self._route(), False
            try:
                async with aclosing(self._attempt(route)) as events:
                    async for event in events:
                        yield event
                        is_over = isinstance(event, Ended)
                if is_over:
                    return
            except TandemError as error:
                self._recover(route, error)
        yield Ended(reason)

    async def _route(self) -> Route:
        """Return the next route; wait where waiting helps."""
        started_s = self._clock.now()
        while True:
            try:
                route = self._router.pick(self._route_request(), avoid=self._avoid)
            except NoDecodeWorker as error:
                if not self._may_wait():
                    raise self._refusal or error from None
            else:
                self._timings_ms["route"] = self._timings_ms.get("route", 0.0) + 1e3 * (self._clock.now() - started_s)
                return route
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        """Let some time pass, more each time, and give everybody another chance."""
        remaining_s = self._remaining_s()
        if self._waiting_since_s is None:
            self._waiting_since_s = self._clock.now()
        await self._clock.sleep(min(self._pause_s, remaining_s))
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
        self._avoid.clear()

    def _may_wait(self) -> bool:
        # Fullness passes, and a stream that has begun is worth waiting for; who has nothing yet may ask again.
        is_worth_it = self._refusal is not None or bool(self._output) or self.num_handovers > 0
        since_s = self._waiting_since_s
        return is_worth_it and (since_s is None or self._clock.now() - since_s < self._limits.room_timeout_s)

    async def _attempt(self, route: Route) -> AsyncGenerator[SequenceEvent, None]:
        message = self._message(route)
        self._is_running = False
        num_tokens = route.num_uncached_tokens if self._kv_source is None else 0  # to be computed anew
        with self._router.flight(route, num_tokens) as flight:
            async with PacedEvents(self._client.generate(route.decode.address, message)) as events:
                event = await self._next(events, self._limits.accept_timeout_s, "acceptance")
                if self._accept(route, flight, event):
                    yield Accepted()
                timeout_s = self._limits.first_token_timeout_s
                while True:
                    event = await self._next(events, timeout_s, "token")
                    match event.WhichOneof("event"):
                        case "tokens":
                            timeout_s = self._limits.token_timeout_s
                            if (news := self._tokens(flight, event.tokens)).tokens:
                                yield news
                        case "path":
                            self._learn(event.path)
                        case "handed_over":
                            self._handed_over(route, flight, event.handed_over)
                            return
                        case "finished":
                            yield self._finish(flight, event.finished)
                            return

    def _accept(self, route: Route, flight: Flight, event: pb.GenerateEvent) -> bool:
        """Take the first event; return whether it is the first acceptance of this sequence."""
        if not event.HasField("accepted"):
            raise PeerGone("The decode worker did not begin with its acceptance.")
        self._router.trust(route.decode.member_id)
        flight.loaded(load_of(event.accepted.load))
        self._refusal = self._waiting_since_s = self._kv_source = None
        self._pause_s = _FIRST_PAUSE_S
        self._proof = unknown_proof(route.decode.member_id, event.accepted.cached_tokens)
        is_first, self._is_accepted, self._is_running = not self._is_accepted, True, True
        return is_first

    def _learn(self, message: pb.PathProof) -> None:
        """Take the way of the prompt; the prefill workers that failed it are suspect, once."""
        if self._proof.path == "unknown":
            for member_id in message.failed_prefill:
                self._router.suspect(member_id)
        self._proof = proof_of(message)

    def _tokens(self, flight: Flight, message: pb.Tokens) -> NewTokens:
        """Take what is new of a message.

        Raises:
            IntegrityError: tokens before it are missing.
        """
        flight.prefilled()
        tokens = tokens_of(message)
        if message.HasField("position"):
            num_repeated = len(self._output) - message.position
            if num_repeated < 0:
                raise IntegrityError(f"{-num_repeated} tokens of the decode worker are missing.")
            tokens = tokens[num_repeated:]
        self._output.extend(token.token_id for token in tokens)
        return NewTokens(tokens)

    def _finish(self, flight: Flight, message: pb.Finished) -> Ended:
        if message.HasField("output_tokens") and message.output_tokens != len(self._output):
            raise IntegrityError(f"The decode worker sent {message.output_tokens} tokens, {len(self._output)} came.")
        flight.loaded(load_of(message.load))
        self._proof = proof_of(message.proof)
        reason = _REASONS.get(message.reason)
        if reason is None:
            raise InternalError("The decode worker gave no reason for the end.")
        return Ended(reason)

    def _handed_over(self, route: Route, flight: Flight, message: pb.HandedOver) -> None:
        """Prepare to go on elsewhere; the worker failed nobody, so it is only avoided."""
        member = route.decode
        flight.loaded(load_of(message.load))
        if message.kept_as:
            self._kv_source = pb.KVSource(member_id=member.member_id, address=member.address, kept_as=message.kept_as)
        self.num_handovers += 1
        self._avoid.add(member.member_id)
        _log.event(
            "sequence.handed_over",
            request_id=self._request.request_id,
            decode=member.member_id,
            kept_blocks=message.blocks,
            emitted_tokens=len(self._output),
        )

    async def _next(self, events: PacedEvents, timeout_s: float, waiting_for: str) -> pb.GenerateEvent:
        remaining_s = self._remaining_s()
        try:
            event = await events.next(min(timeout_s, remaining_s), waiting_for)
        except PeerStalled:
            if remaining_s <= timeout_s:
                raise _deadline_passed() from None
            raise
        if event is None:
            raise PeerGone("The decode worker ended the stream before the sequence ended.")
        return event

    def _remaining_s(self) -> float:
        remaining_s = self._request.deadline_s - self._clock.now()
        if remaining_s <= 0:
            raise _deadline_passed()
        return remaining_s

    def _recover(self, route: Route, error: TandemError) -> None:
        """Prepare the next attempt, or raise ``error`` when another worker would not help."""
        member_id = route.decode.member_id
        if isinstance(error, Overloaded) and not self._is_running:
            self._refusal = error
        elif not isinstance(error, Draining):  # who leaves failed nobody, and still gives what it has cached
            self._count_failure(member_id, error)
        self._avoid.add(member_id)
        _log.warning(
            "sequence.moves",
            request_id=self._request.request_id,
            decode=member_id,
            reason=error.code,
            emitted_tokens=len(self._output),
        )

    def _count_failure(self, member_id: str, error: TandemError) -> None:
        """Take a worker's failure for a replay, or raise it."""
        if isinstance(error, NoPrefillWorker | TokenDivergence) or not isinstance(
            error, (PeerError, IntegrityError, InternalError, Unavailable, Overloaded)
        ):
            raise error
        if not isinstance(error, Overloaded):  # who gave up a stream that nobody read is well
            self._router.suspect(member_id)
        if len(self.replay_codes) >= self._limits.max_replays:
            raise error
        self.replay_codes.append(error.code)

    def _own_end(self) -> FinishReason | None:
        """Return why the sequence is over, if no worker needs to say so: one was lost after the last token."""
        sampling = self._request.sampling
        if self._output and self._output[-1] in sampling.stop_token_ids:
            return "stop"
        return "length" if len(self._output) >= sampling.max_tokens else None

    def _route_request(self) -> RouteRequest:
        num_tokens = len(self._request.prompt_token_ids) + len(self._output)
        longest = len(self._request.prompt_token_ids) + self._request.sampling.max_tokens
        num_blocks = ceil(longest / self._request.block_size)
        request = self._request
        return RouteRequest(request.requirements, num_tokens, num_blocks, request.block_size, self._block_hashes)

    @cached_property
    def _block_hashes(self) -> Sequence[BlockHash]:
        """Names of the prompt's whole blocks in prefix caches."""
        request = self._request
        seed = cache_seed(request.requirements.fingerprint, request.project)
        return self._hash_chains.block_hashes(seed, request.prompt_token_ids, request.block_size)

    def _message(self, route: Route) -> pb.GenerateRequest:
        request = self._request
        # A worker may still hold an earlier attempt of this sequence, so each attempt has its own name.
        suffix = f"~{self._num_attempts}" if self._num_attempts else ""
        self._num_attempts += 1
        return pb.GenerateRequest(
            request_id=request.request_id + suffix,
            fingerprint=request.requirements.fingerprint,
            prompt_token_ids=request.prompt_token_ids,
            resumed_output_token_ids=self._output,
            sampling=sampling_to_message(request.sampling),
            prefill_candidates=[
                pb.PrefillCandidate(
                    member_id=member.member_id,
                    address=member.address,
                    queued_tokens=self._router.queued_tokens(member),
                    prefill_tokens_per_s=member.load.prefill_tokens_per_s,
                )
                for member in route.prefill
            ],
            project=request.project,
            require_prefill=self._limits.require_prefill,
            timeout_s=self._remaining_s(),
            kv_source=self._kv_source or _source(route.kv_source),
        )


def _source(member: Member | None) -> pb.KVSource | None:
    return None if member is None else pb.KVSource(member_id=member.member_id, address=member.address)


def _deadline_passed() -> DeadlineExceeded:
    return DeadlineExceeded("The request did not end within its deadline.")
