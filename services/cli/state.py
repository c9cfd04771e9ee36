"""What a running cluster leaves in its data folder, so that other commands find it.

<data_dir>/secret         the cluster secret, 0600
<data_dir>/cluster.json   where the API and Redis of the running cluster are, 0600; absent when none runs
<data_dir>/redis/         data of the embedded Redis
<data_dir>/logs/          one log per process
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from services.errors import ConfigurationError


@dataclass(frozen=True)
class RunningCluster:
    """Where a cluster that runs on this machine can be reached."""

    base_url: str
    redis_url: str
    pid: int
    """The process that owns the cluster."""


def secret_path(data_dir: Path) -> Path:
    """Return where the cluster secret lies."""
    return data_dir / "secret"


def log_folder(data_dir: Path) -> Path:
    """Return where the logs lie."""
    return data_dir / "logs"


def announce(data_dir: Path, cluster: RunningCluster) -> None:
    """Let other commands find the cluster."""
    path = _cluster_path(data_dir)
    scratch = path.with_suffix(f".{cluster.pid}")
    scratch.touch(mode=0o600)
    scratch.write_text(json.dumps(asdict(cluster)))
    scratch.replace(path)


def withdraw(data_dir: Path, pid: int) -> None:
    """Take back what ``announce`` said for the owner ``pid``; idempotent."""
    cluster = find_running(data_dir)
    if cluster is None or cluster.pid == pid:
        _cluster_path(data_dir).unlink(missing_ok=True)


def find_running(data_dir: Path) -> RunningCluster | None:
    """Return the cluster that runs with this data folder; None when there is none."""
    try:
        cluster = RunningCluster(**json.loads(_cluster_path(data_dir).read_text()))
        os.kill(cluster.pid, 0)
    except (FileNotFoundError, ProcessLookupError, ValueError, TypeError):
        return None
    except PermissionError:  # of another user, so it lives
        return cluster
    return cluster


def find_redis_url(data_dir: Path, given: str | None) -> str:
    """Return the Redis to talk to.

    Raises:
        ConfigurationError: none was given and no cluster runs here.
    """
    if given is not None:
        return given
    cluster = find_running(data_dir)
    if cluster is None:
        raise ConfigurationError(f"no cluster runs with the data folder {data_dir}; start one or give --redis-url")
    return cluster.redis_url


def _cluster_path(data_dir: Path) -> Path:
    return data_dir / "cluster.json"
