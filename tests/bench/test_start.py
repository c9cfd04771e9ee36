from pathlib import Path

import pytest

from bench.processes import SystemFailed
from bench.rows import start


def test_a_cluster_is_asked_once_when_it_is_ready_and_stopped(tmp_path: Path) -> None:
    log = tmp_path / "start.log"

    assert start.first_token_s(tmp_path / "state", log) > 0

    told = log.read_text()
    assert told.index("Tandem serves") < told.index("output_tokens=1")
    assert told.count("sequence.ended") == 1
    assert told.endswith("stopped\n")


def test_a_cluster_that_cannot_start_says_where_its_log_is(tmp_path: Path) -> None:
    (tmp_path / "state" / "secret").mkdir(parents=True)

    with pytest.raises(SystemFailed, match=f"did not start: see {tmp_path}/log"):
        start.first_token_s(tmp_path / "state", tmp_path / "log")

    assert "secret" in (tmp_path / "log").read_text()


def test_the_median_of_starts_after_the_first_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times_s = iter([300.0, 9.0, 7.0, 8.0])
    monkeypatch.setattr(start, "first_token_s", lambda folder, log: next(times_s))

    assert start.measure(3, tmp_path / "log") == 8.0


def test_a_start_that_compiles_is_none_of_those_that_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start, "CACHE_DIR", tmp_path)
    (tmp_path / "kernels").mkdir()
    libraries = iter(["first.so", "again.so"])

    def compiling(folder: Path, log: Path) -> float:
        (tmp_path / "kernels" / next(libraries)).touch()
        return 8.0

    monkeypatch.setattr(start, "first_token_s", compiling)

    with pytest.raises(SystemFailed, match="compiled or converted again"):
        start.measure(1, tmp_path / "log")
