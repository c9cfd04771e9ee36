import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from services.engine.weights.checksums import published_sha256, sha256_of
from services.engine.weights.identity import model_identity
from services.errors import ConfigurationError


def write_weights(file: Path, content: bytes = b"\1" * 400_000, *, name: str = "w") -> None:
    header = json.dumps({name: {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_weights(folder / "model.safetensors")
    (folder / "config.json").write_text('{"vocab_size": 9, "transformers_version": "5.0", "_name_or_path": "x"}')
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return folder


def changed(folder: Path, position: int) -> Path:
    other = folder.with_name("other")
    shutil.copytree(folder, other, symlinks=True)
    with (other / "model.safetensors").open("r+b") as stream:
        stream.seek(position)
        stream.write(b"\2")
    return other


def test_copies_have_the_same_identity(folder: Path) -> None:
    copy = shutil.copytree(folder, folder.with_name("copy"))
    assert model_identity(Path(copy)) == model_identity(folder)


def test_who_wrote_the_config_does_not_matter_but_what_it_says_does(folder: Path) -> None:
    before = model_identity(folder)
    (folder / "config.json").write_text('{"vocab_size": 9, "transformers_version": "5.1", "_name_or_path": "y"}')
    assert model_identity(folder) == before
    (folder / "config.json").write_text('{"vocab_size": 10}')
    assert model_identity(folder) != before


def test_the_tokenizer_matters(folder: Path) -> None:
    before = model_identity(folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert model_identity(folder) != before


def test_tensor_names_and_sizes_matter(folder: Path) -> None:
    before = model_identity(folder)
    write_weights(folder / "model.safetensors", name="v")
    renamed = model_identity(folder)
    write_weights(folder / "model.safetensors", b"\1" * 400_001)
    assert len({before, renamed, model_identity(folder)}) == 3


def test_samples_see_a_changed_end_and_verifying_sees_every_byte(folder: Path) -> None:
    end = folder.joinpath("model.safetensors").stat().st_size - 1
    assert model_identity(changed(folder, end)) != model_identity(folder)
    shutil.rmtree(folder.with_name("other"))
    between = changed(folder, 5_000)
    assert model_identity(between) == model_identity(folder)
    assert model_identity(between, verify=True) != model_identity(folder, verify=True)


def test_a_verified_checksum_is_remembered_until_the_file_changes(folder: Path, tmp_path: Path) -> None:
    sampled = model_identity(folder, cache_dir=tmp_path)
    verified = model_identity(folder, cache_dir=tmp_path, verify=True)
    assert verified != sampled
    assert model_identity(folder, cache_dir=tmp_path) == verified
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert model_identity(folder, cache_dir=tmp_path) == sampled


def publish(folder: Path, sha256: str) -> None:
    (folder / "checksums.json").write_text(json.dumps({"model.safetensors": sha256}))


def test_a_published_checksum_stands_for_the_bytes(folder: Path) -> None:
    verified = model_identity(folder, verify=True)
    publish(folder, sha256_of(folder / "model.safetensors"))
    assert model_identity(folder) == verified


def test_weights_that_differ_from_what_was_published_are_refused_when_verified(folder: Path) -> None:
    publish(folder, "0" * 64)
    assert model_identity(folder)
    with pytest.raises(ConfigurationError, match="damaged"):
        model_identity(folder, verify=True)


def test_the_hub_cache_names_blobs_by_their_checksum(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    digest = sha256_of(weights)
    (tmp_path / "blobs").mkdir()
    weights.rename(tmp_path / "blobs" / digest)
    weights.symlink_to(tmp_path / "blobs" / digest)
    assert published_sha256(weights) == digest


def test_the_hub_client_leaves_checksums_beside_a_plain_download(folder: Path) -> None:
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    (metadata / "model.safetensors.metadata").write_text(f"{'a' * 40}\n{'b' * 64}\n1700000000.0\n")
    assert published_sha256(folder / "model.safetensors") == "b" * 64


def test_a_small_file_of_the_hub_has_no_sha256(folder: Path) -> None:
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    (metadata / "model.safetensors.metadata").write_text(f"{'a' * 40}\n{'b' * 40}\n1700000000.0\n")
    assert published_sha256(folder / "model.safetensors") is None


@pytest.mark.parametrize("content", [b"", b"\0" * 8, struct.pack("<Q", 1000) + b"{}", struct.pack("<Q", 2**60)])
def test_damaged_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match="not a whole safetensors file"):
        model_identity(folder)


def test_a_folder_without_weights_or_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        model_identity(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="safetensors"):
        model_identity(folder)
