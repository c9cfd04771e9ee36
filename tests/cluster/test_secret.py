import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.cluster.secret import check_secret, load_or_create_secret, load_secret, sign, verify
from services.errors import ConfigurationError


def test_a_new_secret_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secret"
    secret = load_or_create_secret(path)
    assert len(secret) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_secret(path) == load_secret(path) == secret
    assert os.listdir(path.parent) == ["secret"]


def test_all_who_make_it_at_once_get_the_same_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(lambda _: load_or_create_secret(tmp_path / "secret"), range(32)))
    assert len(secrets) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    load_or_create_secret(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_or_create_secret(path)


@pytest.mark.parametrize("text", ["", "short", "white space inside it", "ünïcode" * 5])
def test_a_poor_secret_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        load_secret(path)


def test_a_missing_or_unreadable_secret_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load_secret(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        load_or_create_secret(tmp_path / "file" / "secret")


def test_a_signature_holds_for_one_secret_purpose_and_payload() -> None:
    secret = check_secret(b"s" * 16, "the test")
    signature = sign(secret, "purpose", b"payload")
    assert verify(secret, "purpose", b"payload", signature)
    assert not verify(b"t" * 16, "purpose", b"payload", signature)
    assert not verify(secret, "other", b"payload", signature)
    assert not verify(secret, "purpose", b"other", signature)
    assert not verify(secret, "purpose", b"payload", "é")
