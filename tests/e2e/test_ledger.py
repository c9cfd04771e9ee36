"""After hundreds of requests, many of them given up, every KV block is cached or free again."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from services.engine.weights.sources import ModelFolder
from services.rpc import tandem_pb2 as pb
from tests.e2e.harness import Answer, Ask, Cluster, Pair, counter, greedy, seeded
from tests.e2e.prompts import Prompts

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]
KV_MIB = 17
"""48 blocks of the default model: less than a handful of its requests need."""
NUM_REQUESTS = 200
NUM_AT_ONCE = 12
NUM_GROWING = 12
"""Requests at the beginning that fit into the pool together, and then grow until they do not."""
OUTCOMES = ("arrived", "nothing_posted", "unknown")
NUM_ASKED_AGAIN = 5


@dataclass(frozen=True)
class Plan:
    """A request, and when its caller gives it up: after some events, after some seconds, or never."""

    ask: Ask
    give_up_after_events: int | None = None
    give_up_after_s: float | None = None


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def small_pair(bfloat16_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with Cluster(Path(tmp_path_factory.mktemp("ledger"))) as cluster:
        [[prefill], [decode]] = await asyncio.gather(
            cluster.start("prefill", kv_mib=KV_MIB),
            cluster.start("decode", kv_mib=KV_MIB, local_prefill_tokens=24, reserve_timeout_s=300),
        )
        await cluster.wait_warm(decode, prefill)
        yield Pair(cluster, prefill, decode)


async def test_no_claim_is_left_after_200_requests(small_pair: Pair) -> None:
    plans = _plans(await small_pair.cluster.prompts(), small_pair)
    gate = asyncio.Semaphore(NUM_AT_ONCE)
    answers = await asyncio.gather(*(_carry_out(small_pair, plan, gate) for plan in plans))
    prefill = await small_pair.cluster.wait_idle(small_pair.prefill, timeout_s=120)
    decode = await small_pair.cluster.wait_idle(small_pair.decode, timeout_s=120)
    for status in (prefill, decode):
        assert sum(status.ledger.values()) == status.load.total_blocks == 48
        assert status.ledger["cached"] + status.ledger["free"] == status.load.total_blocks
        assert status.load.running == status.load.waiting == status.load.queued_tokens == 0
    finished = [(plan, answer) for plan, answer in zip(plans, answers, strict=True) if answer is not None]
    _check_counters(prefill, decode, finished)
    await _ask_again(small_pair, finished)


def _plans(prompts: Prompts, pair: Pair) -> list[Plan]:
    generator = random.Random(200)
    prefixes = [prompts.text(96, seed=seed) for seed in range(6)]
    growing = [Ask(prompts.text(40, seed=100 + index), seeded(64, seed=index)) for index in range(NUM_GROWING)]
    others = [_random_ask(prompts, prefixes, generator, index) for index in range(NUM_GROWING, NUM_REQUESTS)]
    plans = [Plan(ask) for ask in growing] + [_plan(ask, generator) for ask in others]
    return [replace(plan, ask=replace(plan.ask, prefill=[pair.prefill], project="ledger")) for plan in plans]


def _random_ask(prompts: Prompts, prefixes: list[list[int]], generator: random.Random, index: int) -> Ask:
    prefix = generator.choice(prefixes) if generator.random() < 0.4 else []
    prompt = prefix + prompts.ids(generator.randint(4, 80), seed=index)
    num_tokens = generator.randint(1, 24)
    return Ask(prompt, greedy(num_tokens) if index % 2 else seeded(num_tokens, seed=index))


def _plan(ask: Ask, generator: random.Random) -> Plan:
    match generator.choice(("never", "never", "never", "events", "seconds")):
        case "events":
            return Plan(ask, give_up_after_events=generator.randint(1, ask.params.max_tokens + 1))
        case "seconds":
            return Plan(ask, give_up_after_s=generator.uniform(0.0, 1.0))
    return Plan(ask)


async def _carry_out(pair: Pair, plan: Plan, gate: asyncio.Semaphore) -> Answer | None:
    """Return the answer, or None if the request was given up before its end."""
    async with gate:
        if plan.give_up_after_events is not None:
            await _read_some(pair, plan.ask, plan.give_up_after_events)
            return None
        try:
            async with asyncio.timeout(plan.give_up_after_s):
                return await pair.cluster.generate(pair.decode, plan.ask)
        except TimeoutError:
            return None


async def _read_some(pair: Pair, ask: Ask, num_events: int) -> None:
    async with pair.cluster.stream(pair.decode, ask) as events:
        async for _ in events:
            num_events -= 1
            if num_events == 0:
                return


def _check_counters(prefill: pb.StatusReply, decode: pb.StatusReply, finished: list[tuple[Plan, Answer]]) -> None:
    assert NUM_REQUESTS // 3 < len(finished) < NUM_REQUESTS
    paths = Counter(answer.proof.path for _, answer in finished)
    assert set(paths) == {"pd", "local"}
    for path, count in paths.items():
        assert counter(decode, "tandem_requests", path=path) >= count
    started = sum(counter(decode, "tandem_requests", path=path) for path in ("pd", "local", "fallback"))
    assert len(finished) <= started <= NUM_REQUESTS
    for plan, answer in finished:
        proof = answer.proof
        assert len(answer.token_ids) == plan.ask.params.max_tokens
        assert proof.cached_tokens + proof.transferred_tokens + proof.recomputed_tokens == len(plan.ask.prompt)
    assert counter(decode, "tandem_output_tokens") >= sum(len(answer.token_ids) for _, answer in finished)
    attempts = sum(counter(decode, "tandem_prefill_attempts", outcome=outcome) for outcome in OUTCOMES)
    assert paths["pd"] <= attempts <= NUM_REQUESTS
    moved = counter(decode, "tandem_transferred_bytes", transport="nixl", direction="received")
    assert 0 < moved <= counter(prefill, "tandem_transferred_bytes", transport="nixl", direction="sent")
    for kind in ("token_digest_mismatch", "payload_digest_mismatch"):
        assert counter(decode, "tandem_integrity_failures", kind=kind) == 0
    assert counter(decode, "tandem_preemptions") > 0, "the pool was not small enough"


async def _ask_again(pair: Pair, finished: list[tuple[Plan, Answer]]) -> None:
    """What was answered in the crowd is answered alike alone."""
    for plan, answer in finished[:: len(finished) // NUM_ASKED_AGAIN]:
        alone = await pair.here(replace(plan.ask, project="alone"))
        assert alone.token_ids == answer.token_ids
