"""The Dockerfile: linted, pinned, in step with pyproject.toml. Nothing is built here."""

import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.chart import REPOSITORY, containers, render, values_of

DOCKERFILE = REPOSITORY / "deploy/docker/Dockerfile"
_IMPORT_ALL = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"no module named {name}", name=name)

sys.meta_path.insert(0, Missing())
import services.gateway
from services.cli.__main__ import COMMANDS
names = [found.name for found in pkgutil.walk_packages(services.gateway.__path__, "services.gateway.")]
names += [COMMANDS[command][0] for command in ("gateway", "keys", "status", "drain", "config")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
"""Imports every module of the gateway, and of the commands for its pods, without the packages that are named."""
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


def _requirements(*extras: str) -> list[str]:
    """Return what the package needs with these extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]


def _closure(requirements: list[str]) -> set[str]:
    """Return the names of all distributions that these need here, themselves included."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        wanted = {"", *requirement.extras}
        if name in found and wanted == {""}:
            continue
        found.add(name)
        needs = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        waiting += [(need, each) for need in needs for each in wanted]
    return found


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
    assert _pip_lines("gateway-packages") == ["/opt/tandem/bin/pip install --compile '.[gateway]'"]
    assert "'.[worker]'" in _pip_lines("worker-cpu-packages")[0]
    assert _pip_lines("worker-cuda-packages") == ["/opt/tandem/bin/pip install --compile '.[worker]'"]
    assert "torch" not in _closure(_requirements("gateway"))


def test_packages_are_compiled_ahead() -> None:
    lines = [line for stage in _stages() for line in _pip_lines(stage)]

    assert len(lines) == len(TARGETS)
    for line in lines:
        installs = [step for step in line.split("&&") if "pip install" in step]
        assert installs
        assert all("--compile" in step for step in installs)


def test_only_torch_itself_comes_from_the_index_of_builds_for_cpus() -> None:
    (line,) = _pip_lines("worker-cpu-packages")
    torch, rest, check = (step.strip() for step in line.split("&&"))

    assert "--no-deps" in torch
    assert "--index-url" in torch
    assert torch.endswith(f"torch=={_constraints()['torch']}")
    assert "--index-url" not in rest
    assert check == "/opt/tandem/bin/pip check"


def test_all_cuda_libraries_are_of_one_version() -> None:
    pins = _constraints()
    major = pins["cuda-toolkit"].split(".")[0]
    suffixed = {name: name.rpartition("-cu")[2] for name in pins if re.search(r"-cu\d+$", name)}

    assert set(suffixed.values()) == {major}
    assert {f"nixl-cu{major}", f"nvidia-cudnn-cu{major}", f"nvidia-nccl-cu{major}"} <= set(suffixed)
    assert pins["nvidia-cuda-runtime"].startswith(f"{major}.")
    assert any(one.startswith(f"nixl-cu{major}>") for one in _requirements("worker"))


def test_versions_are_pinned() -> None:
    names = _closure(_requirements("gateway", "worker")) | {"hatchling"}
    base = next(rest for word, rest in _instructions() if word == "ARG")

    assert names <= set(_constraints())
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm", base)
    assert any("PIP_CONSTRAINT=/source/deploy/docker/constraints.txt" in rest for _, rest in _stages()["source"])


def test_the_gateway_runs_with_the_packages_of_its_image_alone() -> None:
    there = _closure(_requirements("gateway"))
    missing = [
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & (there | {"tandem-serve"})
    ]

    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL, *missing], capture_output=True, text=True, timeout=120, check=False
    )

    assert {"torch", "transformers", "nixl_cu13", "httpx", "pytest"} <= set(missing)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 100


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
