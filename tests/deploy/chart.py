"""The Helm chart as tests see it: linted and rendered by Helm's own library, manifests as dictionaries."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "deploy/k8s"
RELEASE = "demo"
NAMESPACE = "llm"
VALUES_FILES = ("default", "cpu", "hpa", "external-redis", "gpu", "local")
"""Names of the files in ``ci/``."""
OLDEST_KUBERNETES = "1.29"
"""What ``kubeVersion`` in Chart.yaml says."""
WORKER_ROLES = ("prefill", "decode")
"""Those of every release; workers for embeddings are there if they are enabled."""

Manifest = dict[str, Any]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """What Helm's linter has to say; severity 1 is information, 2 a warning, 3 an error."""

    severity: int
    path: str
    text: str


class Rendered:
    """The manifests of one set of values."""

    def __init__(self, values: Values, manifests: list[Manifest], notes: str) -> None:
        self.values = values
        self.manifests = manifests
        self.notes = notes

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def find(self, kind: str, name: str) -> Manifest | None:
        return next((one for one in self.of_kind(kind) if one["metadata"]["name"] == name), None)

    def get(self, kind: str, role: str) -> Manifest:
        """Return the object of a role."""
        found = self.find(kind, f"{RELEASE}-tandem-{role}")
        if found is None:
            raise LookupError(f"no {kind} of {role}")
        return found

    @property
    def roles(self) -> tuple[str, ...]:
        """The components that run a process of Tandem."""
        return tuple(component(deployment) for deployment in self.of_kind("Deployment"))

    @property
    def workloads(self) -> list[Manifest]:
        return self.of_kind("Deployment") + self.of_kind("StatefulSet")

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Yield the component and the pod, as ``{metadata, spec}``, of every workload and of the test."""
        for workload in self.workloads:
            yield component(workload), workload["spec"]["template"]
        for pod in self.of_kind("Pod"):
            yield component(pod), pod


def component(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"]["app.kubernetes.io/component"])


def values_of(name: str) -> dict[str, Any]:
    """Return the values of a file in ``ci/``."""
    values: dict[str, Any] = yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text())
    return values


def changed(values: Values, path: str, value: object) -> dict[str, Any]:
    """Return a copy with the value at a dotted path replaced."""
    copy = deepcopy(dict(values))
    *parents, last = path.split(".")
    at = copy
    for name in parents:
        at = at.setdefault(name, {})
    at[last] = value
    return copy


def lint(values: Values) -> list[Finding]:
    """Return what the strict linter finds."""
    report = helm_python.lint(CHART, dict(values), strict=True, kube_version=f"v{OLDEST_KUBERNETES}.0")
    messages = [Finding(one["severity"], one["path"], one["error"]) for one in report["messages"]]
    return messages + [Finding(3, "", text) for text in report["errors"]]


def render(values: Values, *, release: str = RELEASE) -> Rendered:
    """Render the chart for a release of that name.

    Raises:
        HelmError: the schema or a template refuses the values.
    """
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(dict(values), name=release, namespace=NAMESPACE)
    texts = {path: text for path, text in files.items() if path.endswith(".yaml")}
    documents = [one for text in texts.values() for one in yaml.safe_load_all(text) if one is not None]
    return Rendered(values, documents, next(text for path, text in files.items() if path.endswith("NOTES.txt")))


def containers(pod: Manifest) -> list[Manifest]:
    return list(pod["spec"]["containers"])


def environment(container: Manifest) -> dict[str, Any]:
    """Return the variables of a container by name: a value, or where it comes from."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", [])}
