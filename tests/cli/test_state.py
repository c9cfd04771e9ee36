"""How commands find a running cluster."""

import io
import os
from pathlib import Path

import pytest

from services.cli.console import Console
from services.cli.state import RunningCluster, announce, find_redis_url, find_running, withdraw
from services.errors import ConfigurationError

CLUSTER = RunningCluster("http://127.0.0.1:8000", "unix:///r.sock", os.getpid())


def test_an_announced_cluster_is_found_until_it_is_withdrawn(tmp_path: Path) -> None:
    assert find_running(tmp_path) is None
    announce(tmp_path, CLUSTER)
    assert find_running(tmp_path) == CLUSTER
    assert (tmp_path / "cluster.json").stat().st_mode & 0o077 == 0
    assert find_redis_url(tmp_path, None) == "unix:///r.sock"
    withdraw(tmp_path, CLUSTER.pid)
    withdraw(tmp_path, CLUSTER.pid)
    assert find_running(tmp_path) is None


def test_another_owner_does_not_withdraw_it(tmp_path: Path) -> None:
    announce(tmp_path, CLUSTER)
    withdraw(tmp_path, CLUSTER.pid + 1)
    assert find_running(tmp_path) == CLUSTER


def test_a_dead_owner_or_a_broken_file_means_none_runs(tmp_path: Path) -> None:
    announce(tmp_path, RunningCluster("u", "r", 2**22 + 1))
    assert find_running(tmp_path) is None
    (tmp_path / "cluster.json").write_text("{")
    assert find_running(tmp_path) is None


def test_a_given_redis_wins_and_none_is_refused(tmp_path: Path) -> None:
    assert find_redis_url(tmp_path, "redis://x") == "redis://x"
    with pytest.raises(ConfigurationError, match="no cluster runs"):
        find_redis_url(tmp_path, None)


def test_the_console_prefixes_colours_and_keeps_lines(tmp_path: Path) -> None:
    terminal = io.StringIO()
    for line in ("one", "  ", "two "):
        console = Console(terminal, tmp_path, use_colour=line == "two ")
        console.write_line("decode-0", line)
        console.close()
    assert terminal.getvalue() == "decode-0  | one\n\033[36mdecode-0  |\033[0m two\n"
    assert (tmp_path / "decode-0.log").read_text() == "two\n"
    assert (tmp_path / "decode-0.log.old").read_text() == "one\n"
