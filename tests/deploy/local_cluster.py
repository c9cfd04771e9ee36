"""All pods of a release as local processes on one machine."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.deploy.chart import Manifest, Rendered, component
from tests.deploy.kubelet import LocalPod
from tests.deploy.sandbox import Sandbox, Surroundings

_POLL_S = 0.1


class LocalCluster:
    """Runs what the chart renders; leaving it ends every process."""

    def __init__(self, rendered: Rendered, folder: Path, claims: Mapping[str, Path]) -> None:
        self._folder = folder
        self._network = f"127.{random.randrange(1, 255)}.{random.randrange(255)}"
        pods = [
            (component(workload), workload)
            for workload in rendered.workloads
            for _ in range(workload["spec"].get("replicas", 1))
        ]
        roles = [role for role, _ in pods]
        addresses = [f"{self._network}.{number}" for number in range(1, len(pods) + 1)]
        self._around = Surroundings(rendered, claims, _services(rendered, dict(zip(roles, addresses, strict=True))))
        self.pods = [
            self._pod(role, f"{role}-{number}", address, workload)
            for number, ((role, workload), address) in enumerate(zip(pods, addresses, strict=True))
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(*(pod.close() for pod in self.pods))

    def of(self, role: str) -> list[LocalPod]:
        return [pod for pod in self.pods if pod.role == role]

    async def start(self, timeout_s: float) -> None:
        """Start all pods at once, as Kubernetes does, and wait until all are ready."""
        await asyncio.gather(*(pod.start() for pod in self.pods))
        try:
            async with asyncio.timeout(timeout_s):
                while not all(pod.is_ready for pod in self.pods):
                    self._require_running()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise AssertionError(self._describe("not ready", [pod for pod in self.pods if not pod.is_ready])) from None

    async def helm_test(self) -> tuple[int, str]:
        """Run the test pod; return its status and output."""
        (pod,) = self._around.rendered.of_kind("Pod")
        folder = self._folder / "test"
        folder.mkdir()
        sandbox = Sandbox("test", f"{self._network}.200", folder, pod, self._around)
        return await LocalPod(sandbox, "test").run_to_end()

    async def uninstall(self) -> None:
        """Delete all pods at once, as ``helm uninstall`` does."""
        await asyncio.gather(*(pod.terminate() for pod in self.pods if not pod.is_terminating))

    def _pod(self, role: str, name: str, address: str, workload: Manifest) -> LocalPod:
        folder = self._folder / name
        folder.mkdir()
        spec = workload["spec"]
        templates = spec.get("volumeClaimTemplates", [])
        return LocalPod(Sandbox(name, address, folder, spec["template"], self._around, templates), role)

    def _require_running(self) -> None:
        ended = [pod for pod in self.pods if pod.status is not None or pod.failed_liveness]
        if ended:
            raise AssertionError(self._describe("ended", ended))

    def _describe(self, what: str, pods: list[LocalPod]) -> str:
        return "\n".join(f"{pod.name} {what}, status {pod.status}:\n{pod.log_tail()}" for pod in pods)


def _services(rendered: Rendered, addresses: Mapping[str, str]) -> dict[str, str]:
    """Return ``name:port`` of each Service and the address of a pod of its role: what DNS and kube-proxy do."""
    targets: dict[str, str] = {}
    ports = {
        (role, port["name"]): port["containerPort"]
        for role, pod in rendered.pods()
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    }
    for service in rendered.of_kind("Service"):
        role = component(service)
        for port in service["spec"]["ports"]:
            target = ports[role, port["targetPort"]]
            targets[f"{service['metadata']['name']}:{port['port']}"] = f"{addresses[role]}:{target}"
    return targets
