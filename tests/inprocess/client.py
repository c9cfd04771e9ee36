"""What a gateway does to a decode worker, one call at a time."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.engine.engine import Engine
from services.engine.limits import SchedulerConfig
from services.engine.output import SampledToken
from services.engine.request import NewRequest
from services.engine.sampler import BatchSampler
from services.engine.scheduler import Scheduler
from services.errors import PeerGone
from services.kv.hashes import cache_seed
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from services.rpc.convert import sampling_to_message
from services.rpc.errors import translated
from services.transfer.memory import allocate
from services.worker.convert import token_from_message
from tests.inprocess.cluster import CONTEXT_LENGTH, Cluster, Shape, Worker
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S, VOCAB_SIZE, HashModel

GREEDY = SamplingParams(seed=1, max_tokens=12, temperature=0.0)
SEEDED = replace(GREEDY, temperature=1.0, top_p=0.9, frequency_penalty=0.5)


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    return [(seed * 31 + index * 7) % VOCAB_SIZE for index in range(num_tokens)]


@dataclass
class Answer:
    """What came of one sequence."""

    tokens: list[SampledToken] = field(default_factory=list)
    reason: int = pb.FINISH_REASON_UNSPECIFIED
    proof: pb.PathProof = field(default_factory=pb.PathProof)
    frames: list[str] = field(default_factory=list)
    handed_over: pb.HandedOver | None = None

    @property
    def ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


class GenerateCall:
    """One Generate call that a test reads step by step."""

    def __init__(self, cluster: Cluster, request: pb.GenerateRequest, worker: Worker) -> None:
        self.request = request
        self._cluster = cluster
        self.answer = Answer()
        self._call = cluster.channels.decode(worker.address).Generate(request, timeout=DEADLINE_S)

    async def read(self) -> str:
        """Take one event and return its kind.

        Raises:
            TandemError: what the worker raised.
        """
        with translated():
            event = await self._call.read()
        if not isinstance(event, pb.GenerateEvent):
            raise PeerGone("The call ended.")
        kind = str(event.WhichOneof("event"))
        self.answer.frames.append(kind)
        if kind == "tokens":
            self.answer.tokens += [token_from_message(token) for token in event.tokens.tokens]
        if kind == "finished":
            self.answer.reason, self.answer.proof = event.finished.reason, event.finished.proof
        if kind == "handed_over":
            self.answer.handed_over = event.handed_over
        return kind

    async def read_until(self, kind: str) -> None:
        while await self.read() != kind:
            pass

    async def read_until_over(self) -> str:
        """Read to the end here and return its kind."""
        while (kind := await self.read()) not in ("finished", "handed_over"):
            pass
        return kind

    async def read_tokens(self, num_tokens: int) -> None:
        while len(self.answer.tokens) < num_tokens:
            await self.read()

    async def finish(self) -> Answer:
        await self.read_until("finished")
        return self.answer

    def hold(self) -> None:
        """Keep the call open until the cluster ends, unread."""
        self._cluster.stack.callback(self.cancel)

    def cancel(self) -> None:
        self._call.cancel()


def begin(
    cluster: Cluster,
    token_ids: Sequence[int],
    params: SamplingParams = GREEDY,
    *,
    candidates: Sequence[Worker] | None = None,
    worker: Worker | None = None,
    **fields: Any,
) -> GenerateCall:
    """Start a sequence on the decode worker, with every prefill worker as candidate if none are named."""
    worker = worker or cluster.decode
    known = cluster.prefills if candidates is None else candidates
    values: dict[str, Any] = {
        "request_id": secrets.token_hex(4),
        "fingerprint": worker.node.layout.fingerprint,
        "prompt_token_ids": token_ids,
        "sampling": sampling_to_message(params),
        "prefill_candidates": [candidate.candidate for candidate in known],
        **fields,
    }
    return GenerateCall(cluster, pb.GenerateRequest(**values), worker)


async def generate(
    cluster: Cluster, token_ids: Sequence[int], params: SamplingParams = GREEDY, **fields: Any
) -> Answer:
    """Run a sequence to its end."""
    return await begin(cluster, token_ids, params, **fields).finish()


def expected(
    token_ids: Sequence[int], params: SamplingParams = GREEDY, shape: Shape | None = None
) -> list[SampledToken]:
    """Return what one engine answers that has never met another."""
    shape = shape or Shape()
    model = HashModel(allocate(shape.num_blocks, shape.layout.block_bytes))
    engine = Engine(model, BatchSampler(), Scheduler(SchedulerConfig(shape.num_blocks, BLOCK_SIZE, CONTEXT_LENGTH)))
    grammar = None if params.grammar is None else shape.grammars.compile(params.grammar)
    engine.scheduler.add(NewRequest("alone", tuple(token_ids), params, cache_seed("alone", ""), grammar=grammar))
    tokens: list[SampledToken] = []
    while engine.scheduler.has_work:
        tokens += [output.token for output in engine.step().tokens]
    return tokens


def expected_ids(token_ids: Sequence[int], params: SamplingParams = GREEDY, shape: Shape | None = None) -> list[int]:
    return [token.token_id for token in expected(token_ids, params, shape)]
