"""The Dockerfile: linted, pinned, in step with pyproject.toml. Nothing is built here."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.deploy.chart import REPOSITORY, containers, render, values_of

DOCKERFILE = REPOSITORY / "deploy/docker/Dockerfile"
TARGETS = ("gateway", "worker-cpu", "worker-cuda")


def _instructions() -> list[tuple[str, str]]:
    """Return the instructions with their arguments, continued lines joined."""
    text = DOCKERFILE.read_text()
    lines = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    pairs = (line.partition(" ") for line in lines if line.strip())
    return [(word, rest.strip()) for word, _, rest in pairs]


def _stages() -> dict[str, list[tuple[str, str]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for word, rest in _instructions():
        if word == "FROM":
            current = stages.setdefault(rest.split()[-1], [("FROM", rest.split()[0])])
        else:
            current.append((word, rest))
    return stages


def _pip_lines(stage: str) -> list[str]:
    return [rest for word, rest in _stages()[stage] if word == "RUN" and "pip install" in rest]


def _constraints() -> dict[str, str]:
    lines = (REPOSITORY / "deploy/docker/constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_images_are_those_that_the_chart_runs() -> None:
    stages = _stages()
    default, gpu = render({}), render(values_of("gpu"))
    wanted = {
        containers(pod)[0]["image"].rpartition("/")[2].partition(":")[0].partition("@")[0]
        for rendered in (default, gpu)
        for role, pod in rendered.pods()
        if role != "redis"
    }

    assert wanted == {f"tandem-{target}" for target in TARGETS}
    assert set(TARGETS) <= set(stages)


def test_running_images_have_no_root_and_the_ports_of_the_chart() -> None:
    ports = {"gateway": "8000 9090", "worker-cpu": "50051 9090", "worker-cuda": "50051 9090"}
    for target in TARGETS:
        stage = _stages()[target]
        assert stage[0] == ("FROM", "runtime")
        assert ("USER", "10001:10001") in stage
        assert ("EXPOSE", ports[target]) in stage


def test_packages_are_those_of_the_extras() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert _pip_lines("gateway-packages") == ["/opt/tandem/bin/pip install --compile '.[gateway]'"]
    assert all(line.endswith("'.[worker]'") for line in _pip_lines("worker-cpu-packages"))
    assert _pip_lines("worker-cuda-packages") == ["/opt/tandem/bin/pip install --compile '.[worker]'"]
    assert not any(requirement.startswith("torch") for requirement in extras["gateway"])


def test_versions_are_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["gateway"], *extras["worker"], "hatchling"]
    names = {re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    base = next(rest for word, rest in _instructions() if word == "ARG")

    assert names <= set(_constraints())
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm", base)
    assert any("PIP_CONSTRAINT=/source/deploy/docker/constraints.txt" in rest for _, rest in _stages()["source"])
    assert f"torch=={_constraints()['torch']}" in _pip_lines("worker-cpu-packages")[0]


def test_only_the_cpu_image_has_a_compiler() -> None:
    with_compiler = [name for name, stage in _stages().items() if any("g++" in rest for _, rest in stage)]

    assert with_compiler == ["worker-cpu"]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignore if line.startswith("!")]
    for word, rest in _stages()["source"]:
        for path in rest.split()[:-1] if word == "COPY" else []:
            assert (REPOSITORY / path).exists()
            assert any(fnmatch.fnmatch(path, pattern) for pattern in kept), path
