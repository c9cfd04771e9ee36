"""KV moves between workers, for a turn that lands elsewhere and for what a worker that leaves had running: bitwise
the same, over NIXL."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from services.cluster.redis_registry import RedisRegistry
from services.engine.weights.sources import ModelFolder
from services.errors import Draining
from services.kv.hashes import block_hashes, cache_seed
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from services.telemetry.clock import SystemClock
from tests.e2e.harness import Answer, Ask, Cluster, counter, greedy, seeded
from tests.e2e.processes import REPOSITORY, WorkerProcess

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(600)]
KV_MIB = 120
DRAIN_TIMEOUT_S = 90
NUM_TOKENS = 80
NUM_BEFORE = 8
"""Tokens of the first stream that has so many when the worker is told to leave; others may have none yet."""
BLOCK_SIZE = 16
PROMPT_LENGTHS = (5, 40, 150, 400)


@dataclass
class Begun:
    """A stream that was read until its worker left."""

    ask: Ask
    token_ids: list[int]
    left: pb.HandedOver | None = None


@dataclass(frozen=True)
class Scene:
    """A prefill worker and two decode workers, one of which is to leave."""

    cluster: Cluster
    prefill: WorkerProcess
    leaving: WorkerProcess
    staying: WorkerProcess

    async def tandem_drain(self, *words: str) -> tuple[int, list[str]]:
        """Run the command; return its status and what it printed."""
        options = ["--redis-url", self.cluster.redis.url, "--secret-file", str(self.cluster.secret_file)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "drain", *words, *options), cwd=REPOSITORY, stdout=PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return process.returncode, output.decode().splitlines()


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def scene(bfloat16_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with Cluster(Path(tmp_path_factory.mktemp("handover"))) as cluster:
        [prefill], [leaving, staying] = await asyncio.gather(
            cluster.start("prefill", kv_mib=KV_MIB),
            cluster.start("decode", "decode", kv_mib=KV_MIB, drain_timeout_s=DRAIN_TIMEOUT_S, handover_after_s=0),
        )
        await asyncio.gather(*(cluster.wait_warm(decode, prefill) for decode in (leaving, staying)))
        await leaving.wait_event("member.seen", member=staying.member_id)
        yield Scene(cluster, prefill, leaving, staying)


async def test_a_turn_on_other_workers_reuses_all_earlier_ones(scene: Scene) -> None:
    """The first turn was answered by one decode worker alone; the second one is prefilled for another."""
    cluster, prefill, first, second = scene.cluster, scene.prefill, scene.leaving, scene.staying
    prompts = await cluster.prompts()
    asked = prompts.text(300, seed=26)
    answer = await cluster.generate(first, Ask(asked, greedy(40), project="turns"))
    known = [*asked, *answer.token_ids]
    num_reusable = (len(known) - 1) // BLOCK_SIZE * BLOCK_SIZE
    names = block_hashes(cache_seed(cluster.fingerprint, "turns"), known[:num_reusable], BLOCK_SIZE)
    assert names[-1] in await _told_by(cluster, first, names[-1])
    longer = [*known, *prompts.text(200, seed=27)]
    source = pb.KVSource(member_id=first.member_id, address=first.address)
    ask = Ask(longer, greedy(20), prefill=[prefill], project="turns", require_prefill=True)
    moved = await cluster.generate(second, replace(ask, kv_source=source))
    alone = await cluster.generate(second, replace(ask, project="nobody", prefill=(), require_prefill=False))
    assert moved.token_ids == alone.token_ids
    proof = moved.proof
    assert (proof.path, proof.kv_source, proof.transport) == ("pd", first.member_id, "nixl")
    assert (proof.fetched_tokens, proof.prefill_cached_tokens) == (num_reusable, num_reusable)
    assert counter(await cluster.wait_idle(prefill), "tandem_kv_fetches", outcome="arrived") == 1
    await asyncio.gather(*(cluster.wait_idle(worker) for worker in (first, second)))


async def _told_by(cluster: Cluster, worker: WorkerProcess, wanted: bytes) -> set[bytes]:
    """Return the names of cached blocks that a worker tells, once ``wanted`` is one of them."""
    told = set[bytes]()
    call = cluster.channels.kv(worker.address).Watch(pb.WatchRequest(member_id=worker.member_id), timeout=60.0)
    with translated():
        async for event in call:
            told |= set(event.added)
            if wanted in told:
                break
    call.cancel()
    return told


async def test_sequences_of_a_worker_that_leaves_go_on_with_their_kv(scene: Scene) -> None:
    cluster, prefill, leaving, staying = scene.cluster, scene.prefill, scene.leaving, scene.staying
    asks = await _asks(cluster, prefill)
    undisturbed = await asyncio.gather(
        *(cluster.generate(staying, replace(ask, project=f"{ask.project}, alone")) for ask in asks)
    )
    begun = [Begun(ask, []) for ask in asks]
    relaying = [asyncio.create_task(_relay(cluster, leaving, staying, each)) for each in begun]
    while all(len(each.token_ids) < NUM_BEFORE for each in begun):
        await asyncio.sleep(0.01)
    ended = asyncio.create_task(leaving.terminate(timeout_s=2 * DRAIN_TIMEOUT_S))
    answers = await asyncio.gather(*relaying)
    assert await ended == 0
    for each, answer, alone in zip(begun, answers, undisturbed, strict=True):
        assert each.token_ids + answer.token_ids == alone.token_ids
        if each.token_ids:
            _check(each, answer, leaving)
    num_moved = sum(answer.proof.path == "handover" for answer in answers)
    assert num_moved >= len(asks) // 2
    status = await cluster.wait_idle(staying)
    assert counter(status, "tandem_kv_fetches", outcome="arrived") >= num_moved
    assert counter(status, "tandem_requests", path="handover") == num_moved
    assert leaving.events("worker.drained", remaining=0)
    assert leaving.events("handover.unclaimed") == []


async def test_an_operator_lets_a_worker_leave_directly_or_by_a_note_in_redis(scene: Scene) -> None:
    prefill, staying = scene.prefill, scene.staying
    assert await scene.tandem_drain(prefill.member_id) == (0, [f"{prefill.member_id}: drained"])
    assert (await scene.cluster.status(prefill)).draining
    registry = RedisRegistry(scene.cluster.redis.url, scene.cluster.secret, SystemClock(), timeout_s=30.0)
    await registry.ask_to_leave(staying.member_id)
    await registry.close()
    await staying.wait_event("worker.asked_to_leave")
    await scene.cluster.view.wait_for(lambda members: all(member.draining for member in members), 60.0)
    ask = Ask((await scene.cluster.prompts()).text(20, seed=1), greedy(4))
    with pytest.raises(Draining):
        await scene.cluster.generate(staying, ask)
    assert staying.is_alive and prefill.is_alive


async def _asks(cluster: Cluster, prefill: WorkerProcess) -> list[Ask]:
    prompts = await cluster.prompts()
    samplings = [greedy(NUM_TOKENS), seeded(NUM_TOKENS, seed=20_26)]
    return [
        Ask(prompts.text(length, seed=length), params, prefill=[prefill], project=f"{length} {index}")
        for length in PROMPT_LENGTHS
        for index, params in enumerate(samplings)
    ]


async def _relay(cluster: Cluster, source: WorkerProcess, target: WorkerProcess, begun: Begun) -> Answer:
    """Do what a gateway does: read until the worker hands the sequence over, and go on at another one."""
    await _read(cluster, source, begun)
    return await _go_on(cluster, source, target, begun)


async def _read(cluster: Cluster, worker: WorkerProcess, begun: Begun) -> None:
    async with cluster.stream(worker, begun.ask) as events:
        async for event in events:
            begun.token_ids += [token.id for token in event.tokens.tokens]
            if event.HasField("handed_over"):
                begun.left = event.handed_over
                return
    raise AssertionError(f"A stream of {worker} ended after {len(begun.token_ids)} tokens without a hand-over.")


async def _go_on(cluster: Cluster, source: WorkerProcess, target: WorkerProcess, begun: Begun) -> Answer:
    assert begun.left is not None
    kv_source = pb.KVSource(member_id=source.member_id, address=source.address, kept_as=begun.left.kept_as)
    return await cluster.generate(target, replace(begun.ask, resumed=begun.token_ids, kv_source=kv_source))


def _check(begun: Begun, answer: Answer, source: WorkerProcess) -> None:
    """Everything but the last, partial block moved; so the prompt of ``begun`` was computed once."""
    num_known = len(begun.ask.prompt) + len(begun.token_ids)
    num_whole = (num_known - 1) // BLOCK_SIZE
    proof, left = answer.proof, begun.left
    if num_whole == 0:
        return
    assert left is not None and left.blocks == num_whole
    assert (proof.path, proof.kv_source, proof.attempts) == ("handover", source.member_id, 0)
    assert (proof.transport, proof.verified) == ("nixl", True)
    num_moved = num_whole * BLOCK_SIZE
    assert (proof.transferred_tokens, proof.recomputed_tokens) == (num_moved, num_known - num_moved)
