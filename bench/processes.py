"""Server processes: started with a log of their own, awaited with a deadline, ended with all that they started."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.parent_death import dying_with_parent

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.5
_ANSWER_TIMEOUT_S = 5.0

Process = subprocess.Popen[bytes]


class SystemFailed(Exception):
    """A system did not start or did not do its work; the text says what happened, and where its log is."""


@dataclass(frozen=True)
class Command:
    """What to start."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    """Besides that of this process."""
    cores: Collection[int] = ()
    """Cores to stay on; any if empty."""


@contextmanager
def started(command: Command, log: Path) -> Iterator[Process]:
    """Run a command, its output added to ``log``; when left, it and every process of its group has ended.

    Raises:
        SystemFailed: there is no such program.
    """
    try:
        arguments = dying_with_parent(command.arguments, signal.SIGTERM, cores=command.cores)
    except FileNotFoundError as error:
        raise SystemFailed(f"did not start: {error}") from error
    environment = {**os.environ, **command.environment}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        _end(process)


def await_answer(url: str, process: Process, log: Path, *, timeout_s: float = START_TIMEOUT_S) -> bytes:
    """Return the body of the first successful answer.

    Raises:
        SystemFailed: the process ended, or ``timeout_s`` passed.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemFailed(f"did not start: see {log}")
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_TIMEOUT_S) as answer:
                body: bytes = answer.read()
                return body
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(_POLL_S)
    raise SystemFailed(f"did not start within {timeout_s:g} s: see {log}")


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: Process) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):  # nobody of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
