"""The program of ``helm test``: what makes it fail, and what it leaves behind."""

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import Any

import pytest

from services.cli.keys import keys_table
from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.keys import MemoryKeyStore, RedisKeyStore
from services.gateway.redis_state import RedisState
from services.telemetry.clock import SystemClock
from tests.deploy.chart import CHART, REPOSITORY

PROGRAM = CHART / "files/prove_kv_moved.py"
MOVED = {"path": "pd", "kv_bytes": 4096, "verified": True}
TIMEOUT_S = 60.0


class Twin(ThreadingHTTPServer):
    """A gateway that gives every request the same proof of path, or 503 if that is None."""

    daemon_threads = True

    def __init__(self, proof: Mapping[str, Any] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proof = proof
        self.was_asked = Event()
        self.may_answer = Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Twin

    def do_GET(self) -> None:
        self.server.was_asked.set()
        self.server.may_answer.wait(TIMEOUT_S)
        body = json.dumps({"data": [{"id": "m"}], "usage": {"tandem": self.server.proof}}).encode()
        self.send_response(503 if self.server.proof is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the output of the program alone."""


class Keys:
    """``tandem keys`` on a store in memory."""

    def __init__(self, *projects: str) -> None:
        self._store = MemoryKeyStore(SystemClock())
        for project in projects:
            self("create", "--project", project)

    def __call__(self, action: str, *arguments: str) -> str:
        if action == "create":
            return asyncio.run(self._store.create(arguments[1]))
        if action == "revoke":
            asyncio.run(self._store.revoke(arguments[0]))
            return f"revoked {arguments[0]}"
        return keys_table(asyncio.run(self._store.list()))

    @property
    def projects(self) -> list[str]:
        return [key.project for key in asyncio.run(self._store.list())]


@contextmanager
def _serving(proof: Mapping[str, Any] | None) -> Iterator[Twin]:
    with Twin(proof) as twin:
        thread = Thread(target=twin.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield twin
        finally:
            twin.may_answer.set()
            twin.shutdown()
            thread.join()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a module, with keys in memory."""
    spec = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "keys", Keys())
    handler = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, handler)


def test_an_answer_whose_kv_moved_is_the_proof(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with _serving(MOVED) as twin:
        program.main(twin.url, 0.0)

    assert json.loads(capsys.readouterr().out) == MOVED


@pytest.mark.parametrize(
    ("proof", "reason"),
    [
        (MOVED | {"path": "local", "kv_bytes": 0}, 'path is "local", kv_bytes is 0'),
        (MOVED | {"kv_bytes": 0}, "kv_bytes is 0"),
        (MOVED | {"verified": False}, "verified is false"),
        ({}, "path is null, kv_bytes is null, verified is null"),
        (None, "HTTPError: HTTP Error 503: Service Unavailable"),
    ],
)
def test_every_other_answer_is_a_failure_with_its_reason(
    program: ModuleType, proof: Mapping[str, Any] | None, reason: str
) -> None:
    with _serving(proof) as twin, pytest.raises(SystemExit) as ended:
        program.main(twin.url, 0.0)

    assert ended.value.code == f"no answer proved that KV moved between the pools: {reason}"


@pytest.mark.parametrize("proof", [MOVED, {}])
def test_its_key_is_revoked_with_those_of_killed_tests_and_no_others(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, proof: Mapping[str, Any]
) -> None:
    keys = Keys("helm-test", "helm-test of mine")
    monkeypatch.setattr(program, "keys", keys)

    with _serving(proof) as twin:
        try:
            program.main(twin.url, 0.0)
        except SystemExit as ended:
            assert proof != MOVED, ended

    assert keys.projects == ["helm-test of mine"]


async def test_its_key_is_revoked_when_the_pod_is_told_to_stop(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as redis:
        state = RedisState(redis.url, timeout_s=30.0)
        keys = RedisKeyStore(state, SystemClock())
        with _serving(MOVED) as twin, _process(twin, redis.url) as process:
            assert await asyncio.to_thread(twin.was_asked.wait, TIMEOUT_S)
            while_asking = [key.project for key in await keys.list()]
            process.terminate()
            _, reason = await asyncio.to_thread(process.communicate, timeout=TIMEOUT_S)

        assert while_asking == ["helm-test"]
        assert (process.returncode, reason.strip()) == (1, "told to stop")
        assert await keys.list() == []
        await state.close()


@contextmanager
def _process(twin: Twin, redis_url: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the program against a gateway that does not answer."""
    twin.may_answer.clear()
    with subprocess.Popen(
        [sys.executable, PROGRAM, twin.url, str(TIMEOUT_S)],
        env={"PYTHONPATH": str(REPOSITORY), "TANDEM_REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
