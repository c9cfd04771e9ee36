"""Whoever is missing, stands still, dies or is a stranger: streams go on with the same tokens, memory comes back."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.cluster.secret import load_or_create_secret
from services.engine.weights.sources import ModelFolder
from services.errors import AuthenticationFailed, NoPrefillWorker
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import translated
from tests.e2e.harness import Answer, Ask, Cluster, counter, greedy, is_idle, seeded
from tests.e2e.processes import WorkerProcess, attempt_at, wait_listening
from tests.e2e.prompts import Prompts

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]
KV_MIB = 120
STEP_TOKENS = 48
"""Small steps, so that a long prompt is many steps away from its end for long."""
STEP_TIMEOUT_S = 6
LONG = 1400


@dataclass(frozen=True)
class Scene:
    """One decode worker, prefill workers that tests may harm, and one of another cluster at the same Redis."""

    cluster: Cluster
    prompts: Prompts
    decode: WorkerProcess
    doomed: WorkerProcess
    sleepy: WorkerProcess
    stranger: WorkerProcess

    async def undisturbed(self, ask: Ask) -> list[int]:
        """Return what the decode worker answers alone."""
        alone = await self.cluster.generate(self.decode, replace(ask, prefill=(), project=f"{ask.project}, alone"))
        assert alone.proof.path == "fallback"
        return alone.token_ids

    async def begin(self, ask: Ask, prefill: WorkerProcess) -> "asyncio.Task[Answer]":
        """Send a long prompt away; return when some of it is computed and most of it is not."""
        answer = asyncio.create_task(self.cluster.generate(self.decode, ask))
        half = len(ask.prompt) // 2
        await self.cluster.wait_status(
            prefill, lambda s: half < s.load.queued_tokens < len(ask.prompt), "half a prompt"
        )
        return answer


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def scene(bfloat16_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("absence")
    async with Cluster(folder) as cluster:
        other_secret = folder / "other-secret"
        load_or_create_secret(other_secret)
        stranger = cluster.spawn("prefill", kv_mib=KV_MIB, secret_file=other_secret)
        [[decode], [doomed, sleepy], _] = await asyncio.gather(
            cluster.start("decode", kv_mib=KV_MIB, prefill_step_timeout_s=STEP_TIMEOUT_S, settle_grace_s=1),
            cluster.start("prefill", "prefill", kv_mib=KV_MIB, max_step_tokens=STEP_TOKENS),
            wait_listening(stranger),
        )
        await asyncio.gather(*(cluster.wait_warm(decode, prefill) for prefill in (doomed, sleepy)))
        yield Scene(cluster, await cluster.prompts(), decode, doomed, sleepy, stranger)


async def test_without_a_prefill_worker_the_decode_worker_answers(scene: Scene) -> None:
    ask = Ask(scene.prompts.text(100, seed=1), greedy(4), project="nobody")
    answer = await scene.cluster.generate(scene.decode, ask)
    assert (answer.proof.path, answer.proof.reason) == ("fallback", "no_prefill_worker")
    assert answer.proof.recomputed_tokens == len(ask.prompt)
    with pytest.raises(NoPrefillWorker):
        await scene.cluster.generate(scene.decode, replace(ask, require_prefill=True))


async def test_a_prefill_worker_that_stands_still_is_left_and_what_it_writes_later_harms_nobody(scene: Scene) -> None:
    ask = Ask(scene.prompts.ids(LONG, seed=2), greedy(12), prefill=[scene.sleepy], project="still", request_id="still")
    expected = await scene.undisturbed(replace(ask, request_id=""))
    answering = await scene.begin(ask, scene.sleepy)
    scene.sleepy.pause()
    try:
        answer = await answering
        assert (answer.proof.path, answer.proof.reason) == ("fallback", "peer_stalled")
        assert answer.token_ids == expected
        meanwhile = [Ask(scene.prompts.ids(300, seed=30 + index), seeded(12, seed=index)) for index in range(3)]
        before = await asyncio.gather(*(scene.cluster.generate(scene.decode, other) for other in meanwhile))
        status = await scene.cluster.status(scene.decode)
        assert status.ledger["quarantined"] > 0
        assert scene.decode.events("quarantine.ended", request_id="still") == []
    finally:
        scene.sleepy.resume()
    await scene.decode.wait_event("quarantine.ended", request_id="still", timeout_s=120)
    await scene.cluster.wait_idle(scene.decode)
    await scene.cluster.wait_idle(scene.sleepy)
    cached = await asyncio.gather(*(scene.cluster.generate(scene.decode, other) for other in meanwhile))
    assert all(answer.proof.cached_tokens > 0 for answer in cached)
    assert [answer.token_ids for answer in cached] == [answer.token_ids for answer in before]
    again = await scene.cluster.generate(scene.decode, replace(ask, project="awake", request_id="awake"))
    assert (again.proof.path, again.token_ids) == ("pd", expected)


async def test_a_prefill_worker_that_dies_is_replaced_and_its_blocks_come_back(scene: Scene) -> None:
    ask = Ask(scene.prompts.text(LONG, seed=3), seeded(12, seed=3), project="dying", request_id="dying")
    expected = await scene.undisturbed(replace(ask, request_id=""))
    answering = await scene.begin(replace(ask, prefill=[scene.doomed]), scene.doomed)
    scene.doomed.kill()
    answer = await answering
    assert (answer.proof.path, answer.proof.reason) == ("fallback", "peer_gone")
    assert answer.token_ids == expected
    await scene.decode.wait_event("quarantine.ended", request_id="dying")
    status = await scene.cluster.wait_idle(scene.decode)
    assert counter(status, "tandem_prefill_attempts", outcome="unknown") > 0
    next_one = replace(ask, prefill=[scene.doomed, scene.sleepy], project="dead", request_id="dead")
    answer = await scene.cluster.generate(scene.decode, next_one)
    assert (answer.proof.path, answer.proof.prefill, answer.proof.attempts) == ("pd", scene.sleepy.member_id, 2)
    assert answer.token_ids == expected


async def test_a_worker_with_another_secret_is_ignored_and_refused(scene: Scene) -> None:
    await scene.decode.wait_until(
        lambda: bool(scene.decode.events("member.ignored", member=scene.stranger.member_id)), "ignored stranger"
    )
    assert scene.stranger.member_id not in {member.member_id for member in scene.cluster.view.members()}
    ask = Ask(scene.prompts.text(200, seed=4), greedy(4), project="stranger", request_id="stranger")
    expected = await scene.undisturbed(replace(ask, request_id=""))
    answer = await scene.cluster.generate(scene.decode, replace(ask, prefill=[scene.stranger]))
    assert (answer.proof.path, answer.token_ids) == ("fallback", expected)
    assert scene.stranger.events("prefill.accepted", request_id=attempt_at("stranger")) == []
    channels = Channels(b"the secret of another cluster")
    try:
        with pytest.raises(AuthenticationFailed), translated():
            await channels.admin(scene.decode.address).Status(pb.StatusRequest(), timeout=60.0)
    finally:
        await channels.close()


async def test_while_redis_is_away_streams_go_on_and_members_come_back_with_it(scene: Scene) -> None:
    running = Ask(scene.prompts.text(150, seed=5), seeded(60, seed=5), prefill=[scene.sleepy], project="running")
    new = replace(running, project="new", params=greedy(8))
    expected = [await scene.undisturbed(running), await scene.undisturbed(new)]
    token_ids: list[int] = []
    async with scene.cluster.stream(scene.decode, running) as events:
        await _read(events, token_ids, at_least=1)
        assert scene.cluster.redis.pid is not None
        os.kill(scene.cluster.redis.pid, signal.SIGKILL)
        await scene.cluster.redis.wait_exit()
        assert len(token_ids) < len(expected[0])
        answer = await scene.cluster.generate(scene.decode, new)
        await _read(events, token_ids, at_least=len(expected[0]))
    assert (answer.proof.path, [token_ids, answer.token_ids]) == ("pd", expected)
    workers = (scene.decode, scene.sleepy)
    for worker in workers:
        await worker.wait_event("registry.away")
    await _restart_empty(scene.cluster)
    for worker in workers:
        await worker.wait_until(lambda: len(worker.events("member.joined")) > 1, "second joining")  # noqa: B023
    await scene.cluster.wait_members(workers)
    assert is_idle(await scene.cluster.wait_idle(scene.decode))


async def _read(events: AsyncIterator[pb.GenerateEvent], token_ids: list[int], *, at_least: int) -> None:
    while len(token_ids) < at_least:
        event = await anext(events)
        token_ids += [token.id for token in event.tokens.tokens]


async def _restart_empty(cluster: Cluster) -> None:
    """Start Redis again, without what it knew."""
    await cluster.redis.start()
    async with Redis.from_url(cluster.redis.url) as client:
        await client.flushall()
