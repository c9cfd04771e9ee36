from pathlib import Path

import pytest

from services.engine.weights.locks import exclusive
from services.errors import ConfigurationError


def test_a_held_lock_is_waited_for_until_the_deadline_and_the_wait_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "made" / "lock"
    with (
        exclusive(path, timeout_s=0.0, progress=lambda text, share: None),
        pytest.raises(ConfigurationError, match="held"),
        exclusive(path, timeout_s=0.0, progress=lambda text, share: told.append(text)),
    ):
        pass
    assert told == ["waiting for another process that prepares the same model"]


def test_a_lock_is_free_after_its_holder_left_by_an_error(tmp_path: Path) -> None:
    def hold(error: Exception | None) -> None:
        with exclusive(tmp_path / "lock", timeout_s=0.0, progress=lambda text, share: None):
            if error:
                raise error

    with pytest.raises(ValueError, match="oops"):
        hold(ValueError("oops"))
    hold(None)
