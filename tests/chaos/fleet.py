"""Real workers that tests kill, stop and replace, and whose fault plans they change while these run."""

import asyncio
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.errors import PeerError
from services.rpc import tandem_pb2 as pb
from tests.chaos.caller import Caller, Question
from tests.e2e.harness import IDLE_CLAIMS, Cluster, counter, greedy, seeded
from tests.e2e.processes import WorkerProcess, wait_listening

KV_MIB = 120
STEP_TOKENS = 48
"""Prompt tokens of one step: prompts of a hundred tokens have several chunks."""
MAX_TRIES = 4
NUM_QUESTIONS, PROMPT_TOKENS, NUM_TOKENS = 4, 110, 24
OPTIONS: dict[str, object] = {
    "kv_mib": KV_MIB,
    "max_step_tokens": STEP_TOKENS,
    "drain_timeout_s": 60,
}
DECODE_OPTIONS: dict[str, object] = {
    "local_prefill_tokens": 16,
    "max_local_prefill_tokens": 16,
    "max_reserved_share": 1.0,
    "prefill_step_timeout_s": 10,
    "settle_grace_s": 0.5,
}
DEFECTS = ("engine.defect", "rpc.defect", "ledger.broken", "faults.refused")
READY_TIMEOUT_S = 120.0

Line = dict[str, Any]


@dataclass
class Fleet:
    """A cluster of which always some prefill and some decode workers live."""

    cluster: Cluster
    options: dict[str, object] = field(default_factory=dict)
    decode_options: dict[str, object] = field(default_factory=dict)
    prompt_tokens: int = PROMPT_TOKENS
    num_tokens: int = NUM_TOKENS
    caller: Caller = field(init=False)
    undisturbed: list[list[int]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    tokens_compared: int = 0
    _joined: set[int] = field(default_factory=set)
    _joining: set["asyncio.Task[None]"] = field(default_factory=set)
    _probing: "asyncio.Task[None] | None" = None
    _plans: dict[int, Path] = field(default_factory=dict)
    _names: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.call_as(Caller(self.cluster))

    def call_as(self, caller: Caller) -> None:
        """Let all questions come from ``caller`` from now on."""
        if self._probing is not None:
            self._probing.cancel()
        self.caller, self._probing = caller, asyncio.create_task(caller.probing.follow())

    # -- workers -----------------------------------------------------------------------------------

    def spawn(self, role: str, *lines: Line, **options: object) -> WorkerProcess:
        """Start a worker and return at once."""
        plan = self.cluster.folder / f"plan-{next(self._names)}.yaml"
        _write(plan, lines)
        own = {**DECODE_OPTIONS, **self.decode_options} if role == "decode" else {}
        values = {**OPTIONS, **own, **self.options, "fault_plan": plan, **options}
        worker = self.cluster.spawn(role, **values)  # type: ignore[arg-type]
        self._plans[worker.process.pid] = plan
        joining = asyncio.create_task(self._join(worker))
        self._joining.add(joining)
        joining.add_done_callback(self._joining.discard)
        return worker

    async def _join(self, worker: WorkerProcess) -> None:
        await wait_listening(worker)
        if not self.cluster.fingerprint:
            self.cluster.fingerprint = (await self.cluster.status(worker)).fingerprint
        await self.cluster.wait_members([worker])
        self._joined.add(worker.process.pid)

    async def ready(self, **counts: int) -> None:
        """Wait until so many workers of each role live and are listed; start what is missing."""
        for role, count in counts.items():
            for _ in range(count - sum(worker.role == role for worker in self.living())):
                self.spawn(role)
        async with asyncio.timeout(READY_TIMEOUT_S):
            while any(len(self.members(role)) < count for role, count in counts.items()):
                await asyncio.sleep(0.05)

    async def trusted(self) -> None:
        """Wait until no worker is suspect, so that the next question goes wherever the test wants it."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while self.caller.suspects.now():
                await asyncio.sleep(0.05)

    def living(self) -> list[WorkerProcess]:
        return [worker for worker in self.cluster.workers if worker.is_alive]

    def members(self, role: str) -> list[WorkerProcess]:
        """Return the living workers of a role that have joined."""
        return [w for w in self.living() if w.role == role and w.process.pid in self._joined]

    async def close(self) -> None:
        tasks = [*self._joining, *([self._probing] if self._probing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- faults ------------------------------------------------------------------------------------

    def arm(self, workers: Sequence[WorkerProcess], *lines: Line, **plan: Any) -> None:
        """Give workers another plan; occurrences count from now on."""
        for worker in workers:
            _write(self._plans[worker.process.pid], lines, **plan)

    def disarm(self) -> None:
        self.arm(self.living())

    def injected(self, workers: Sequence[WorkerProcess], step: str) -> int:
        return sum(len(worker.events("faults.injected", step=step)) for worker in workers)

    # -- questions ---------------------------------------------------------------------------------

    async def learn(self) -> None:
        """Ask every question once while nothing is amiss."""
        prompts = await self.cluster.prompts()
        for index in range(NUM_QUESTIONS):
            params = seeded(self.num_tokens, seed=index) if index % 2 else greedy(self.num_tokens)
            make = prompts.text if index < 2 else prompts.ids
            prompt = make(self.prompt_tokens, seed=index)
            self.questions.append(Question(tuple(prompt), params))
        self.undisturbed = [await self._undisturbed(index) for index in range(NUM_QUESTIONS)]

    async def _undisturbed(self, index: int) -> list[int]:
        """Return the ids of an answer that needed no help; a slow host may disturb one by itself."""
        for _ in range(MAX_TRIES):
            answer = await self.caller.ask(self.question(index))
            assert answer.proof is not None
            if (answer.reason, answer.replays, answer.proof.path) == ("length", 0, "pd"):
                return answer.token_ids
        raise AssertionError(f"question {index} was never answered undisturbed: {answer}")

    def question(self, index: int) -> Question:
        """Return a question that nobody has blocks of."""
        question = self.questions[index % NUM_QUESTIONS]
        return Question(question.prompt, question.sampling, project=f"project-{next(self._names)}")

    def check(self, index: int, token_ids: Sequence[int]) -> None:
        """The ids are those of the undisturbed run."""
        expected = self.undisturbed[index % NUM_QUESTIONS]
        assert list(token_ids) == expected, f"question {index}: {token_ids}, undisturbed {expected}"
        self.tokens_compared += len(expected)

    # -- invariants --------------------------------------------------------------------------------

    async def audit(self, *, timeout_s: float = 60.0) -> list[pb.StatusReply]:
        """Every joined worker comes to rest with all blocks accounted for, and none had a defect."""
        workers = [*self.members("prefill"), *self.members("decode")]
        for worker in workers:
            await self._connected(worker)
        statuses = [await self.cluster.wait_idle(worker, timeout_s=timeout_s) for worker in workers]
        for worker, status in zip(workers, statuses, strict=True):
            assert sum(status.ledger.values()) == status.load.total_blocks, (str(worker), status.ledger)
            assert not any(status.ledger[claim] for claim in IDLE_CLAIMS), (str(worker), status.ledger)
        for worker in self.cluster.workers:
            assert not [event for name in DEFECTS for event in worker.events(name)], f"{worker}:\n{worker.log_tail()}"
        return statuses

    async def _connected(self, worker: WorkerProcess) -> None:
        """Wait until a worker answers: to one that stood still, our connection has to be made anew."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                try:
                    await self.cluster.status(worker)
                    return
                except PeerError:
                    assert worker.is_alive, f"{worker}:\n{worker.log_tail()}"
                    await asyncio.sleep(0.2)

    async def integrity_failures(self) -> Counter[str]:
        """Return what living decode workers refused, by kind."""
        counted = Counter[str]()
        kinds = ("token_digest_mismatch", "payload_digest_mismatch", "integrity_error")
        for worker in self.members("decode"):
            status = await self.cluster.status(worker)
            counted.update({kind: int(counter(status, "tandem_integrity_failures", kind=kind)) for kind in kinds})
            counted["stale"] += int(counter(status, "tandem_stale_notices"))
        return +counted


def _write(path: Path, lines: Sequence[Line], **plan: Any) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"faults": list(lines), **plan}))
    os.replace(beside, path)
