"""A cluster of real processes: redis-server, prefill and decode workers over NIXL, and a caller like a gateway."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import Member
from services.cluster.secret import load_or_create_secret
from services.cluster.view import MemberView
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.convert import sampling_to_message
from services.rpc.errors import translated
from services.telemetry.clock import SystemClock
from tests.e2e.processes import POLL_S, WorkerProcess, spawn, wait_listening
from tests.e2e.prompts import Prompts

CACHE_DIR = Path("~/.cache/tandem").expanduser()
"""Where the default model is converted once per host."""
MEMBERS_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 200.0
IDLE_CLAIMS = ("quarantined", "reserved", "leased", "used")
_MIB = 1 << 20


@dataclass(frozen=True)
class Answer:
    """What came of one request."""

    token_ids: list[int]
    proof: pb.PathProof
    reason: int


@dataclass(frozen=True)
class Ask:
    """One request, as a test words it."""

    prompt: Sequence[int]
    params: SamplingParams
    prefill: Sequence[WorkerProcess] = ()
    resumed: Sequence[int] = ()
    project: str = ""
    require_prefill: bool = False
    request_id: str = ""
    kv_source: pb.KVSource | None = None

    def message(self, fingerprint: str, request_id: str) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            request_id=request_id,
            fingerprint=fingerprint,
            prompt_token_ids=self.prompt,
            resumed_output_token_ids=self.resumed,
            sampling=sampling_to_message(self.params),
            prefill_candidates=[pb.PrefillCandidate(member_id=w.member_id, address=w.address) for w in self.prefill],
            project=self.project,
            require_prefill=self.require_prefill,
            timeout_s=REQUEST_TIMEOUT_S,
            kv_source=self.kv_source,
        )


@dataclass
class Cluster:
    """One Redis and the workers that a test starts; leaving it ends them all."""

    folder: Path
    dtype: str = "bfloat16"
    workers: list[WorkerProcess] = field(default_factory=list)
    fingerprint: str = ""
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        self.secret_file = self.folder / "secret"
        self.secret = load_or_create_secret(self.secret_file)
        self.redis = await self._stack.enter_async_context(EmbeddedRedis(self.folder))
        self.channels = Channels(self.secret)
        self._stack.push_async_callback(self.channels.close)
        registry = RedisRegistry(self.redis.url, self.secret, SystemClock(), timeout_s=30.0)
        self._stack.push_async_callback(registry.close)
        self.view = await self._stack.enter_async_context(MemberView(registry, SystemClock(), refresh_s=0.2))
        self._stack.push_async_callback(self._end_workers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # -- workers -----------------------------------------------------------------------------------

    async def start(self, *roles: str, kv_mib: int, **options: object) -> list[WorkerProcess]:
        """Start one worker per role, all at once, and wait until each of them has joined and knows the others."""
        return await self.join([self.spawn(role, kv_mib=kv_mib, **options) for role in roles])

    async def join(self, started: list[WorkerProcess]) -> list[WorkerProcess]:
        """Wait until each of them has joined and knows the others."""
        await asyncio.gather(*(wait_listening(worker) for worker in started))
        self.fingerprint = self.fingerprint or (await self.status(started[0])).fingerprint
        await self.wait_members(started)
        return started

    def spawn(self, role: str, *, kv_mib: int, **options: object) -> WorkerProcess:
        """Start one worker and return at once."""
        settings: dict[str, object] = {
            "dtype": self.dtype,
            "threads": 1,
            "kv_memory_bytes": kv_mib * _MIB,
            "redis_url": self.redis.url,
            "secret_file": self.secret_file,
            "cache_dir": CACHE_DIR,
            "log_json": True,
            "drain_timeout_s": 5,
        }
        log = self.folder / f"{role}-{len(self.workers)}.log"
        self.workers.append(spawn(role, settings | options, log))
        return self.workers[-1]

    async def wait_members(self, workers: Sequence[WorkerProcess]) -> Sequence[Member]:
        """Wait until the workers are listed."""
        wanted = {worker.member_id for worker in workers}

        def are_listed(members: Sequence[Member]) -> bool:
            return wanted <= {member.member_id for member in members}

        return await self.view.wait_for(are_listed, MEMBERS_TIMEOUT_S)

    async def prompts(self) -> Prompts:
        """Return a source of prompts that uses the tokenizer of the published card."""
        members = await self.view.wait_for(lambda members: bool(members), MEMBERS_TIMEOUT_S)
        card = await self.view.card(members[0].card_digest)
        return Prompts(card.tokenizer_json, card.vocab_size)

    async def wait_warm(self, decode: WorkerProcess, prefill: WorkerProcess) -> None:
        """Wait until the pair is connected."""
        await decode.wait_event("pair.warm", prefill=prefill.member_id)

    async def _end_workers(self) -> None:
        await asyncio.gather(*(worker.terminate() for worker in self.workers))

    # -- calls -------------------------------------------------------------------------------------

    async def generate(self, decode: WorkerProcess, ask: Ask) -> Answer:
        """Run one request to its end."""
        token_ids: list[int] = []
        async with self.stream(decode, ask) as events:
            async for event in events:
                if event.WhichOneof("event") == "tokens":
                    token_ids += [token.id for token in event.tokens.tokens]
                elif event.WhichOneof("event") == "finished":
                    return Answer(token_ids, event.finished.proof, event.finished.reason)
        raise AssertionError(f"The stream ended without an end; {decode} logged:\n{decode.log_tail()}")

    @asynccontextmanager
    async def stream(self, decode: WorkerProcess, ask: Ask) -> AsyncIterator[AsyncIterator[pb.GenerateEvent]]:
        """Open one request; leaving the context closes the call."""
        request = ask.message(self.fingerprint, ask.request_id or f"request-{next(self._names)}")
        with translated():
            call = self.channels.decode(decode.address).Generate(request)
            try:
                yield aiter(call)
            finally:
                call.cancel()

    async def status(self, worker: WorkerProcess) -> pb.StatusReply:
        with translated():
            return await self.channels.admin(worker.address).Status(pb.StatusRequest(), timeout=60.0)

    async def wait_idle(self, worker: WorkerProcess, *, timeout_s: float = 60.0) -> pb.StatusReply:
        """Wait until no block is claimed, and return the state of that moment."""
        return await self.wait_status(worker, is_idle, "idle ledger", timeout_s=timeout_s)

    async def wait_status(
        self,
        worker: WorkerProcess,
        condition: Callable[[pb.StatusReply], bool],
        what: str,
        *,
        timeout_s: float = 60.0,
    ) -> pb.StatusReply:
        """Ask until ``condition`` holds."""
        deadline_s = time.monotonic() + timeout_s
        while not condition(status := await self.status(worker)):
            assert time.monotonic() < deadline_s, f"{worker}: no {what} within {timeout_s} s: {status}"
            await asyncio.sleep(POLL_S)
        return status


@dataclass(frozen=True)
class Pair:
    """One prefill and one decode worker that know each other."""

    cluster: Cluster
    prefill: WorkerProcess
    decode: WorkerProcess

    async def away(self, ask: Ask) -> Answer:
        """Run ``ask`` through the prefill worker."""
        return await self.cluster.generate(self.decode, replace(ask, prefill=[self.prefill], require_prefill=True))

    async def here(self, ask: Ask) -> Answer:
        """Run ``ask`` on the decode worker alone."""
        return await self.cluster.generate(self.decode, replace(ask, prefill=(), require_prefill=False))


def is_idle(status: pb.StatusReply) -> bool:
    """Whether nothing runs and nothing but the prefix cache holds a block."""
    return not any(status.ledger[claim] for claim in IDLE_CLAIMS) and not status.load.running + status.load.waiting


def counter(status: pb.StatusReply, name: str, **labels: str) -> float:
    text = "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}" if labels else ""
    return status.counters.get(name + text, 0.0)


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(seed=0, max_tokens=max_tokens, temperature=0.0)


def seeded(max_tokens: int, seed: int) -> SamplingParams:
    return SamplingParams(
        seed=seed,
        max_tokens=max_tokens,
        temperature=1.0,
        top_p=0.9,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
    )
