"""A cluster without workers: a tiny tokenizer, a model card, members, and a decode twin that plays scripts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import httpx
import orjson
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from services.cluster.memory import MemoryRegistry
from services.cluster.registry import Member, MemberLoad, Role
from services.cluster.view import MemberView
from services.errors import TandemError
from services.gateway.__main__ import Gateway, Surroundings, build
from services.gateway.admission.ledger import MemoryShareLedger
from services.gateway.answering.timeline import MemoryTimelineStore
from services.gateway.embeddings.client import EmbeddingClient
from services.gateway.keys import MemoryKeyStore
from services.gateway.redis_state import RedisState
from services.gateway.runs.model_turns import ModelTurns, TurnServices
from services.gateway.runs.turns import Turns
from services.gateway.settings import GatewaySettings
from services.gateway.store.object_store import ObjectStore
from services.kv.card import ModelCard
from services.rpc import tandem_pb2 as pb
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import ManualClock
from services.telemetry.metrics import GatewayMetrics
from tests.gateway.cache_twin import CacheTwin
from tests.gateway.embedding_twin import EmbeddingTwin

CHAT_ML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END_ID = 2
MODEL = "tiny/chat-model"
CORPUS = ["hello world, what is the capital of France? Paris is the capital of France.\n", "system user assistant\n"]


@cache
def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer.to_str()


def raw_tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json())


def card(**changes: Any) -> ModelCard:
    values = ModelCard(
        model_name=MODEL,
        fingerprint="f" * 64,
        numerics_class="test",
        context_length=512,
        vocab_size=raw_tokenizer().get_vocab_size(),
        block_size=16,
        block_bytes=1024,
        eos_token_ids=(END_ID,),
        tokenizer_json=tokenizer_json(),
        chat_template=CHAT_ML,
        special_tokens={"eos_token": "<|im_end|>"},
        created=1_700_000_000,
    )
    return replace(values, **changes)


def member(member_id: str, role: Role = Role.DECODE, model: ModelCard | None = None, **changes: Any) -> Member:
    model = model or card()
    values = Member(
        member_id=member_id,
        role=role,
        address=f"{member_id}:1",
        model_name=model.model_name,
        card_digest=model.digest,
        fingerprint=model.fingerprint,
        transport="inproc",
        protocol_version=PROTOCOL_VERSION,
        load=MemberLoad(available_blocks=100, total_blocks=100, prefill_tokens_per_s=1000.0),
    )
    return replace(values, **changes)


def tokens(text: str) -> list[int]:
    return list(raw_tokenizer().encode(text, add_special_tokens=False).ids)


def proof(decode: str = "d1", **changes: Any) -> pb.PathProof:
    values: dict[str, Any] = {
        "path": "pd",
        "prefill": "p1",
        "decode": decode,
        "cached_tokens": 16,
        "transferred_tokens": 32,
        "recomputed_tokens": 8,
        "kv_bytes": 4096,
        "transport": "inproc",
        "verified": True,
        "attempts": 1,
        "timings_ms": {"reserve": 1.0, "prefill": 5.0, "first_token": 7.0},
    }
    return pb.PathProof(**{**values, **changes})


@dataclass
class Script:
    """What a decode worker says: ``output`` token by token, then the end, or ``error`` after ``fail_after`` tokens."""

    output: Sequence[int] = ()
    reason: int = pb.FINISH_REASON_STOP
    error: TandemError | None = None
    fail_after: int = 0
    refuse: TandemError | None = None
    hang_after: int | None = None
    hand_over_after: int | None = None
    kept_as: str = ""
    tell_path: bool = False
    path: str = "pd"
    num_failed_prefill: int = 0
    """How many of the candidates failed, from the first on."""
    step: int = 1
    lost: frozenset[int] = frozenset()
    """Positions whose messages do not come."""
    repeated: frozenset[int] = frozenset()
    """Positions whose messages come twice."""


class DecodeTwin:
    """Plays scripts by address; remembers what it was asked."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[Script]] = {}
        self.first: list[Script] = []
        """Played before all others, wherever the request goes."""
        self.default = Script(output=[*tokens("Paris"), END_ID])
        self.requests: list[pb.GenerateRequest] = []
        self.addresses: list[str] = []
        self.num_closed = 0
        self.probed: list[str] = []
        self.silent: set[str] = set()
        self.hanging = asyncio.Event()
        self.release = asyncio.Event()

    async def generate(self, address: str, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateEvent, None]:
        self.requests.append(request)
        self.addresses.append(address)
        queue = self.first or self.scripts.get(address, [])
        script = queue.pop(0) if queue else self.default
        try:
            async for event in self._play(address, script, request):
                yield event
        finally:
            self.num_closed += 1

    async def is_serving(self, address: str, timeout_s: float) -> bool:
        self.probed.append(address)
        return address not in self.silent

    async def _play(self, address: str, script: Script, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateEvent]:
        if script.refuse is not None:
            raise script.refuse
        load = pb.Load(running=1, available_blocks=90, total_blocks=100)
        yield pb.GenerateEvent(accepted=pb.Accepted(cached_tokens=16, load=load))
        start = len(request.resumed_output_token_ids)
        output = list(script.output)[: request.sampling.max_tokens]
        for position in range(start, len(output) + 1, script.step):
            await self._maybe_stop(script, position)
            if script.hand_over_after is not None and position >= script.hand_over_after:
                yield pb.GenerateEvent(handed_over=pb.HandedOver(kept_as=script.kept_as, load=load))
                return
            if position == 0 and script.tell_path:
                failed = [each.member_id for each in request.prefill_candidates[: script.num_failed_prefill]]
                told = proof(address.split(":")[0], path=script.path, failed_prefill=failed)
                yield pb.GenerateEvent(path=told)
            chunk = output[position : position + script.step]
            if chunk and position not in script.lost:
                tokens = [_token(request, token_id) for token_id in chunk]
                event = pb.GenerateEvent(tokens=pb.Tokens(tokens=tokens, position=position))
                for _ in range(2 if position in script.repeated else 1):
                    yield event
        reason = pb.FINISH_REASON_LENGTH if len(output) < len(script.output) else script.reason
        finished = pb.Finished(proof=proof(address.split(":")[0], path=script.path), load=load)
        finished.reason = reason  # type: ignore[assignment]
        finished.output_tokens = len(output)
        yield pb.GenerateEvent(finished=finished)

    async def _maybe_stop(self, script: Script, position: int) -> None:
        if script.error is not None and position >= script.fail_after:
            raise script.error
        if script.hang_after is not None and position >= script.hang_after:
            self.hanging.set()
            await self.release.wait()


def _token(request: pb.GenerateRequest, token_id: int) -> pb.Token:
    if not request.sampling.HasField("logprobs"):
        return pb.Token(id=token_id)
    top = [pb.TokenLogprob(token_id=token_id, logprob=-0.5), pb.TokenLogprob(token_id=5, logprob=-2.0)]
    return pb.Token(id=token_id, logprob=-0.5, top=top[: request.sampling.logprobs])


@dataclass
class World:
    """A gateway with everything around it in one process."""

    gateway: Gateway
    client: httpx.AsyncClient
    decode: DecodeTwin
    registry: MemoryRegistry
    view: MemberView
    keys: MemoryKeyStore
    timelines: MemoryTimelineStore
    clock: ManualClock
    metrics: CollectorRegistry

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self.client.post(path, content=content, **options)

    async def chat(self, **changes: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", chat_body(**changes))

    async def join(self, new: Member, model: ModelCard | None = None) -> None:
        await self.registry.join(new, model or card())
        await self.view.refresh()


def chat_body(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **changes}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream; asserts that it ends with [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [orjson.loads(line.removeprefix("data: ")) for line in lines[:-1] if not line.startswith(":")]


def absent_objects() -> ObjectStore:
    """A store whose Redis is away."""
    return ObjectStore(RedisState("unix:///nowhere/redis.sock", 1.0))


@asynccontextmanager
async def world(
    *,
    members: Sequence[Member] | None = None,
    model: ModelCard | None = None,
    client_host: str = "127.0.0.1",
    objects: ObjectStore | None = None,
    embedder: EmbeddingClient | None = None,
    turns: Callable[[TurnServices], Turns] = ModelTurns,
    clock: ManualClock | None = None,
    secret: bytes = b"a secret of tests",
    **changes: Any,
) -> AsyncIterator[World]:
    """A running gateway; ``changes`` are settings. Its runs are swept only when a test says so."""
    clock = clock or ManualClock()
    decode = DecodeTwin()
    registry = MemoryRegistry(clock, lease_s=1e9)
    view = MemberView(registry, clock)
    listed = [member("d1", model=model), member("p1", Role.PREFILL, model)] if members is None else members
    for each in listed:
        await registry.join(each, model or card())
    await view.refresh()
    keys, timelines, metrics = MemoryKeyStore(clock), MemoryTimelineStore(clock, 900), CollectorRegistry()
    with ThreadPoolExecutor(1) as executor:
        around = Surroundings(
            view=view,
            client=decode,
            embedder=embedder or EmbeddingTwin(),
            caches=CacheTwin(),
            health=decode,
            keys=keys,
            timelines=timelines,
            shares=MemoryShareLedger(clock),
            objects=absent_objects() if objects is None else objects,
            executor=executor,
            secret=secret,
            registry=metrics,
            metrics=GatewayMetrics(metrics),
            clock=clock,
            random=Random(1),
            turns=turns,
        )
        gateway = build(GatewaySettings(serve_admin_on_main=True, **changes), around)
        transport = httpx.ASGITransport(gateway.app, client=(client_host, 5000))
        async with gateway.recorder, httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            try:
                yield World(gateway, client, decode, registry, view, keys, timelines, clock, metrics)
            finally:
                await gateway.jobs.close()
