"""The rendered pods, run as local processes: their own commands, environment, volumes, probes and preStop hooks.

One cluster goes through everything once: it comes up, answers, loses a decode pod and then all pods to the
orderly end of a release, under load all the while. The streams that are open when the release ends are long enough
to run on while everybody is told to stop. The tests read what happened.
"""

import asyncio
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import CACHE_DIR
from tests.deploy.chart import Rendered, containers, render, values_of
from tests.deploy.kubelet import LocalPod
from tests.deploy.local_cluster import LocalCluster
from tests.deploy.streams import Clients, Stream

pytestmark = pytest.mark.timeout(600)
START_TIMEOUT_S = 200.0
STORY_TIMEOUT_S = 560.0
NUM_CLIENTS = 3
MAX_TOKENS = 32
LONG_BY = 3
"""The last streams take so many times the seconds after which decode workers are told to stop."""


@dataclass(frozen=True)
class Story:
    """What happened."""

    pods: list[LocalPod]
    test_status: int
    test_output: str
    keys_after_test: str
    clients: Clients
    uninstalled_s: float
    """When all pods were deleted."""

    def first(self, role: str) -> LocalPod:
        return next(pod for pod in self.pods if pod.role == role)

    def told_s(self, role: str) -> float:
        """Return when the last pod of a role got SIGTERM."""
        return max(pod.ending.told_s for pod in self.pods if pod.role == role and pod.ending)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("pods")
    yield asyncio.run(_tell(folder))


async def _tell(folder: Path) -> Story:
    rendered = render(values_of("local"))
    cluster = LocalCluster(rendered, folder, {"cache": CACHE_DIR})
    async with asyncio.timeout(STORY_TIMEOUT_S), cluster:
        await cluster.start(START_TIMEOUT_S)
        gateway = cluster.of("gateway")[0]
        status, output = await cluster.helm_test()
        words = ["python", "-m", "services.cli", "keys"]
        _, keys_after_test = await gateway.execute([*words, "list"])
        _, key = await gateway.execute([*words, "create", "--project", "trial"])
        clients = Clients(f"http://{gateway.address}:8000", key.strip(), "smollm2", MAX_TOKENS)
        asking = asyncio.create_task(clients.run(NUM_CLIENTS))
        await clients.more_ended(NUM_CLIENTS)
        await cluster.of("decode")[0].terminate()
        await clients.more_ended(NUM_CLIENTS)
        until_told_s = int(_hook(rendered, "decode")[-1])
        await clients.all_opened(NUM_CLIENTS, math.ceil(LONG_BY * until_told_s * clients.tokens_per_s))
        uninstalled_s = time.monotonic()
        await cluster.uninstall()
        await asking
    return Story(cluster.pods, status, output, keys_after_test, clients, uninstalled_s)


def _hook(rendered: Rendered, role: str) -> list[str]:
    (container,) = containers(rendered.get("Deployment", role)["spec"]["template"])
    command: list[str] = container["lifecycle"]["preStop"]["exec"]["command"]
    return command


def _proofs(streams: list[Stream]) -> list[dict[str, object]]:
    return [stream.proof for stream in streams]


def test_all_pods_become_ready_though_all_start_at_once(story: Story) -> None:
    assert [pod.role for pod in story.pods] == ["decode", "decode", "embed", "gateway", "prefill", "redis"]
    assert all(pod.became_ready for pod in story.pods)
    assert not any(pod.failed_liveness for pod in story.pods)


def test_the_helm_test_sees_kv_moving(story: Story) -> None:
    *_, last = [json.loads(line) for line in story.test_output.splitlines()]

    assert story.test_status == 0
    assert last["path"] == "pd"
    assert last["kv_bytes"] > 0
    assert last["transport"] == "nixl"


def test_the_key_of_the_helm_test_is_revoked(story: Story) -> None:
    assert story.keys_after_test.startswith("no keys")


def test_answers_go_through_both_pools_while_a_decode_pod_leaves(story: Story) -> None:
    before = [stream for stream in story.clients.streams if stream.began_s < story.uninstalled_s]

    assert len(before) >= NUM_CLIENTS + 1
    assert {proof["path"] for proof in _proofs(before)} == {"pd"}
    assert {proof["replays"] for proof in _proofs(before)} == {0}


def test_no_stream_is_lost(story: Story) -> None:
    for stream in story.clients.streams:
        assert (stream.problem, stream.is_done, stream.reason) == ("", True, "length")
        assert stream.num_tokens == stream.max_tokens
        assert 0 < stream.num_pieces <= stream.max_tokens
    assert all(proof["path"] in ("pd", "local", "fallback", "handover") for proof in _proofs(story.clients.streams))


def test_open_streams_run_on_when_decode_workers_are_told_to_stop(story: Story) -> None:
    streams = story.clients.streams
    told_s = story.told_s("decode")
    across = [one for one in streams if one.began_s < story.uninstalled_s and one.ended_s > told_s]
    gateway = story.first("gateway").ending

    assert len(across) == NUM_CLIENTS
    assert gateway is not None
    assert gateway.ended_s > max(stream.ended_s for stream in streams)


def test_nobody_is_refused_before_the_gateway_closes(story: Story) -> None:
    assert len(story.clients.refused_s) == NUM_CLIENTS
    assert min(story.clients.refused_s) > story.told_s("gateway")


def test_pods_are_told_to_stop_in_order(story: Story) -> None:
    order = sorted(("redis", "prefill", "decode", "gateway"), key=story.told_s)

    assert order == ["gateway", "decode", "prefill", "redis"]
    assert story.first("gateway").events("gateway.draining")[0]["open_requests"] > 0


def test_workers_leave_when_their_work_is_done(story: Story) -> None:
    workers = [pod for pod in story.pods if pod.role in ("prefill", "decode")]
    for pod in workers:
        names = [event["event"] for event in pod.events()]
        (drained,) = pod.events("worker.drained")
        assert drained["remaining"] == 0
        assert names.index("worker.draining") < names.index("worker.drained")
    assert any(event["live"] > 0 for pod in workers for event in pod.events("worker.draining"))
    leaving = story.first("decode").events()
    assert [event["event"] for event in leaving if event["event"].startswith("member.l")] == ["member.left"]


def test_every_process_ends_by_itself(story: Story) -> None:
    endings = {pod.name: pod.ending for pod in story.pods}

    assert {
        name: (one.hook_status, one.status, one.was_killed) for name, one in endings.items() if one
    } == dict.fromkeys(endings, (0, 0, False))
