import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.processes import Command, SystemFailed, await_answer, free_port, started

SERVER = """
import http.server, subprocess, sys
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", stubborn])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(child.pid).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DEADLINE_S = 60.0


def python(source: str, *arguments: str, cores: tuple[int, ...] = (), **environment: str) -> Command:
    return Command((sys.executable, "-c", source, *arguments), environment, cores)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_server_is_awaited_and_ended_with_its_children_and_its_port(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "server.log"

    with started(python(SERVER, str(port)), log) as process:
        child = int(await_answer(f"http://127.0.0.1:{port}/health", process, log))
        assert is_running(process.pid) and is_running(child)

    assert process.returncode == -signal.SIGTERM
    until(lambda: not is_running(child))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_a_process_has_its_settings_cores_and_log(tmp_path: Path) -> None:
    core, log = min(os.sched_getaffinity(0)), tmp_path / "new" / "one.log"
    source = "import os; print(os.environ['PLACE'], os.sched_getaffinity(0))"

    with started(python(source, cores=(core,), PLACE="here"), log) as process:
        assert process.wait(DEADLINE_S) == 0

    assert log.read_text() == f"here {{{core}}}\n"


def test_a_process_that_ends_did_not_start(tmp_path: Path) -> None:
    log = tmp_path / "server.log"

    with (
        pytest.raises(SystemFailed, match=f"did not start: see {log}"),
        started(python("raise SystemExit('no model')"), log) as process,
    ):
        await_answer(f"http://127.0.0.1:{free_port()}/health", process, log)

    assert log.read_text() == "no model\n"


def test_a_process_that_never_answers_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "server.log"

    with (
        pytest.raises(SystemFailed, match=r"within 0\.2 s"),
        started(python("import signal; signal.pause()"), log) as process,
    ):
        await_answer(f"http://127.0.0.1:{free_port()}/health", process, log, timeout_s=0.2)

    assert process.returncode == -signal.SIGTERM


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(SystemFailed, match="no-such-program"),
        started(Command(("no-such-program",), {}), tmp_path / "log"),
    ):
        pass
