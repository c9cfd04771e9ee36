"""A real redis-server owned by this process, for clusters on one machine.

    <data_dir>/redis/            0700
        lock                     held (flock) by this process and by the server; holds the server's pid
        redis.conf  redis.log    written at every start; the log of the start before is redis.log.old
        redis.sock               0600; in a temporary 0700 directory if its path would be too long
        appendonly.aof ...       the data, kept across restarts

The server has no TCP port. It dies with its parent: the kernel sends it SIGTERM when the thread that
started it ends, so call ``start`` on the thread that lives as long as the process does.
"""

import asyncio
import os
import signal
import tempfile
from asyncio.subprocess import Process
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.cluster.directory_lock import DirectoryLock
from services.cluster.redis_binary import check_version, find_redis_server
from services.errors import ConfigurationError, Unavailable
from services.parent_death import dying_with_parent
from services.telemetry.clock import Clock, SystemClock
from services.telemetry.logs import get_logger

MAX_SOCKET_PATH_BYTES = 107
"""``sun_path`` holds 108 bytes, the closing zero included."""

_POLL_S = 0.02
_LOCK_WAIT_S = 2.0
_LOG_TAIL_LINES = 5

_log = get_logger(__name__)


class EmbeddedRedis:
    """Starts, watches and stops one redis-server; ``async with`` or ``start`` and ``stop``."""

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: Path | None = None,
        start_timeout_s: float = 30.0,
        stop_timeout_s: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        self._directory = data_dir.absolute() / "redis"
        self._binary = binary
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock or SystemClock()
        self._socket = self._directory / "redis.sock"
        self._process: Process | None = None
        self._held = AsyncExitStack()

    @property
    def url(self) -> str:
        """The ``unix://`` URL of the running server."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def socket_path(self) -> Path:
        """Where the running server listens."""
        return self._socket

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the server and wait until it answers; also after it was killed.

        Raises:
            ConfigurationError: no binary, an unusable directory, or another server uses the same data.
            Unavailable: the server ended or did not answer in time; the message has the end of its log.
        """
        if self.pid is not None:
            return
        await self._held.aclose()
        binary = self._binary or find_redis_server()
        async with AsyncExitStack() as started:
            lock = await self._prepare(started)
            self._process = await self._spawn(binary, lock)
            started.push_async_callback(self._end, self._process)
            lock.write_pid(self._process.pid)
            await self._wait_ready(self._process)
            self._held = started.pop_all()
        _log.event("redis.started", pid=self.pid, socket=self._socket, binary=binary)

    async def stop(self) -> None:
        """Let the server write everything and end; kill it if it does not in time. Idempotent."""
        await self._held.aclose()

    async def wait_exit(self) -> int:
        """Return the server's exit status (negative: the signal) once it ends, on its own or by ``stop``.

        Raises:
            Unavailable: it was never started.
        """
        if self._process is None:
            raise Unavailable("The embedded Redis was not started.")
        return await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _prepare(self, started: AsyncExitStack) -> DirectoryLock:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._directory.chmod(0o700)
            lock = started.enter_context(DirectoryLock(self._directory / "lock"))
            await lock.acquire(self._clock, wait_s=_LOCK_WAIT_S)
            self._socket = _socket_path(self._directory, started)
            self._write_config()
        except OSError as error:
            raise ConfigurationError(f"The Redis directory {self._directory} cannot be used: {error}.") from error
        return lock

    def _write_config(self) -> None:
        log = self._directory / "redis.log"
        if log.exists():
            log.replace(self._directory / "redis.log.old")
        config = self._directory / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(_config(self._directory, self._socket))

    async def _spawn(self, binary: Path, lock: DirectoryLock) -> Process:
        if not os.access(binary, os.X_OK):
            raise ConfigurationError(f"{binary} cannot be run: it is missing or not executable.")
        command = [str(binary), str(self._directory / "redis.conf")]
        with (self._directory / "redis.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *dying_with_parent(command, signal.SIGTERM),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the parent, which stops the server last
                pass_fds=(lock.descriptor,),
            )

    async def _wait_ready(self, process: Process) -> None:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                while not await self._answers(process.pid):
                    if process.returncode is not None:
                        raise Unavailable(f"redis-server ended at its start: {self._log_tail()}")
                    await self._clock.sleep(_POLL_S)
        except TimeoutError as error:
            raise Unavailable(
                f"redis-server is not ready after {self._start_timeout_s} s: {self._log_tail()}"
            ) from error

    async def _answers(self, pid: int) -> bool:
        retry = Retry(NoBackoff(), 0)
        async with Redis.from_url(self.url, socket_timeout=self._start_timeout_s, retry=retry) as client:
            try:
                await client.ping()
                server = await client.info("server")
            except (RedisError, OSError):  # not listening yet, or still loading its data
                return False
        check_version(str(server["redis_version"]))
        return int(server["process_id"]) == pid

    async def _end(self, process: Process) -> None:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(self._stop_timeout_s):
                    await process.wait()
            except TimeoutError:
                _log.warning("redis.killed", pid=process.pid, after_s=self._stop_timeout_s)
            finally:
                if process.returncode is None:
                    process.kill()
        status = await process.wait()
        _log.event("redis.stopped", pid=process.pid, status=status)

    def _log_tail(self) -> str:
        lines = [line for line in (self._directory / "redis.log").read_text(errors="replace").splitlines() if line]
        return " | ".join(lines[-_LOG_TAIL_LINES:]) or "no log"


def _socket_path(directory: Path, started: AsyncExitStack) -> Path:
    """Return a path that fits into a socket address."""
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    short = started.enter_context(tempfile.TemporaryDirectory(prefix="tandem-", ignore_cleanup_errors=True))
    path = Path(short) / "redis.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigurationError(f"The path {path} is too long for a Unix socket; set TMPDIR to a short one.")
    return path


def _config(directory: Path, socket: Path) -> str:
    settings = {
        "port": "0",
        "unixsocket": _quoted(str(socket)),
        "unixsocketperm": "600",
        "dir": _quoted(str(directory)),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "always",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "loglevel": "notice",
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def _quoted(text: str) -> str:
    plain = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(text)
    )
    return '"' + "".join(plain) + '"'
