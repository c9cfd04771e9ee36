"""The small kubelet itself: what it reports of pods that do not end in time."""

import asyncio
import signal
from pathlib import Path

from tests.deploy.chart import Manifest, render
from tests.deploy.kubelet import LocalPod
from tests.deploy.sandbox import Sandbox, Surroundings

WAITS = ["sleep", "300"]


def _pod(folder: Path, *, hook: list[str], command: list[str], grace_s: int = 1) -> LocalPod:
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 1}
    container: Manifest = {
        "command": command,
        "lifecycle": {"preStop": {"exec": {"command": hook}}},
        "readinessProbe": probe,
        "livenessProbe": probe,
    }
    pod = {"spec": {"containers": [container], "volumes": [], "terminationGracePeriodSeconds": grace_s}}
    return LocalPod(Sandbox("pod", "127.0.0.1", folder, pod, Surroundings(render({}), {}, {})), "decode")


async def test_a_hook_that_outlasts_the_grace_period_leaves_no_time_for_the_process(tmp_path: Path) -> None:
    pod = _pod(tmp_path, hook=WAITS, command=WAITS)
    await pod.start()

    ending = await pod.terminate()

    assert (ending.hook_status, ending.status, ending.was_killed) == (None, -signal.SIGKILL, True)
    assert ending.told_s <= ending.ended_s


async def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    ignores = ["sh", "-c", "trap '' TERM; touch ignores; while true; do sleep 0.1; done"]
    pod = _pod(tmp_path, hook=["true"], command=ignores, grace_s=4)
    await pod.start()
    async with asyncio.timeout(30):
        while not (tmp_path / "ignores").exists():
            await asyncio.sleep(0.01)

    ending = await pod.terminate()

    assert (ending.hook_status, ending.status, ending.was_killed) == (0, -signal.SIGKILL, True)


async def test_a_process_that_ends_when_told_is_not_killed(tmp_path: Path) -> None:
    pod = _pod(tmp_path, hook=["true"], command=WAITS, grace_s=30)
    await pod.start()

    ending = await pod.terminate()

    assert (ending.hook_status, ending.status, ending.was_killed) == (0, -signal.SIGTERM, False)
