"""``tandem up``: a whole cluster on this machine, owned by one process."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from errno import EADDRINUSE

from services.cli.child import ChildProcess, ProcessSpec
from services.cli.console import Console
from services.cli.failures import EXIT_FAILED, EXIT_REFUSED
from services.cli.plan import Machine, Preparation, make_plan
from services.cli.readiness import ReadinessProbe, ready_text
from services.cli.settings import UpSettings
from services.cli.state import RunningCluster, announce, log_folder, secret_path, withdraw
from services.cli.supervisor import Exit, Supervisor
from services.cluster.embedded_redis import EmbeddedRedis
from services.cluster.secret import load_or_create_secret
from services.config import Loaded, inherited_environment, load
from services.errors import ConfigurationError, Unavailable
from services.resources import available_cpus, available_gpus, available_memory_bytes
from services.telemetry.clock import Clock, SystemClock
from services.telemetry.logs import configure_logging

MAX_EARLY_EXITS = 3
"""A process that ended this often before the cluster was ready will hardly ever run."""

_READY_POLL_S = 0.2
_REDIS = "redis"


def main(argv: Sequence[str]) -> int:
    """Run a cluster until it is told to stop; return the exit status."""
    loaded = load(UpSettings, argv, prog="tandem up")
    up = loaded.settings
    up.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    configure_logging(level="warning", as_json=False, process="up")
    console = Console(sys.stderr, log_folder(up.data_dir), use_colour=sys.stderr.isatty())
    try:
        return asyncio.run(LocalCluster(loaded, console, SystemClock()).run())
    finally:
        console.close()


class LocalCluster:
    """The life of one cluster: secret, Redis, model, processes, ready, drained."""

    def __init__(self, loaded: Loaded[UpSettings], console: Console, clock: Clock) -> None:
        self._loaded = loaded
        self._up = loaded.settings
        self._console = console
        self._clock = clock
        self._stop = asyncio.Event()
        self._is_killed = False
        self._is_ready = False
        self._failure: Exit | None = None
        self._supervisor = Supervisor(clock=clock, write_line=console.write_line, on_exit=self._note_exit)

    @property
    def base_url(self) -> str:
        """Where the API answers, as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._up.host, self._up.host)
        return f"http://{host}:{self._up.port}"

    async def run(self) -> int:
        """Start everything, wait for Ctrl-C or SIGTERM, stop everything; return the exit status.

        Raises:
            TandemError: the cluster could not be started.
        """
        check_port(self._up.host, self._up.port)
        load_or_create_secret(secret_path(self._up.data_dir))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with self._supervisor:
                await self._run_until_stopped()
        finally:
            withdraw(self._up.data_dir, os.getpid())
        return EXIT_FAILED if self._is_killed else 0

    async def _run_until_stopped(self) -> None:
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.wait({starting, stopping})
        self._say("stopping: running requests may finish; Ctrl-C again stops at once")
        withdraw(self._up.data_dir, os.getpid())
        await self._supervisor.stop(stop_stages(self._supervisor.names))
        self._say("stopped")

    async def _start(self) -> None:
        redis_url = await self._start_redis()
        machine = Machine(available_cpus(), available_memory_bytes(), self._gpus())
        plan = make_plan(self._loaded, machine, redis_url=redis_url, environment=inherited_environment())
        for preparation in plan.preparations:
            await self._prepare(preparation)
        for worker in plan.workers:
            self._say(f"starting {worker.spec.name}: {worker.share}")
            await self._start_process(worker.spec)
        await self._start_process(plan.gateway)
        model = await self._wait_ready()
        self._is_ready = True
        announce(self._up.data_dir, RunningCluster(self.base_url, redis_url, os.getpid()))
        print(ready_text(self.base_url, model, plan, log_folder(self._up.data_dir)), flush=True)
        for spec in plan.embed:
            await self._start_process(spec)

    async def _start_redis(self) -> str:
        if self._up.redis_url is not None:
            return self._up.redis_url
        redis = EmbeddedRedis(self._up.data_dir)
        await self._supervisor.start(_REDIS, redis)
        return redis.url

    async def _start_process(self, spec: ProcessSpec) -> None:
        await self._supervisor.start(spec.name, ChildProcess(spec, self._console.write_line))

    async def _prepare(self, preparation: Preparation) -> None:
        spec = ProcessSpec("model", preparation.command, inherited_environment(), stop_timeout_s=2.0)
        process = ChildProcess(spec, self._console.write_line)
        await process.start()
        try:
            status = await process.wait_exit()
        finally:
            await process.stop()
        if status:
            raise ConfigurationError(f"the model {preparation.model} could not be prepared; the lines above say why")

    async def _wait_ready(self) -> str:
        """Return the name of the served model once the gateway knows every worker and can serve."""
        async with ReadinessProbe(self.base_url) as probe:
            return await self._poll(probe)

    async def _poll(self, probe: ReadinessProbe) -> str:
        deadline_s = self._clock.now() + self._up.ready_timeout_s
        while self._clock.now() < deadline_s:
            if self._failure is not None:
                log = log_folder(self._up.data_dir) / f"{self._failure.name}.log"
                raise Unavailable(f"{self._failure} before the cluster was ready; see {log}")
            model = await probe.served_model(self._up.prefill + self._up.decode)
            if model is not None:
                return model
            await self._clock.sleep(_READY_POLL_S)
        raise Unavailable(f"the cluster is not ready after {self._up.ready_timeout_s:g} s")

    def _note_exit(self, ended: Exit) -> None:
        is_hopeless = ended.status == EXIT_REFUSED or ended.count >= MAX_EARLY_EXITS
        if not self._is_ready and is_hopeless:
            self._failure = ended

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._is_killed = True
            self._say("killing everything")
            self._supervisor.kill()
        self._stop.set()

    def _gpus(self) -> tuple[str, ...]:
        return available_gpus(visible=inherited_environment().get("CUDA_VISIBLE_DEVICES"))

    def _say(self, text: str) -> None:
        self._console.write_line("up", text)


def stop_stages(names: Sequence[str]) -> list[list[str]]:
    """Return who stops when: who takes requests first, then who works for them, at last what all need."""
    kinds = ("gateway", "decode", "prefill", "embed", _REDIS)
    return [[name for name in names if name.split("-")[0] == kind] for kind in kinds]


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on, before anything is started.

    Raises:
        ConfigurationError: it is taken, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = "is taken; choose another with --port" if error.errno == EADDRINUSE else f"cannot be used: {error}"
        raise ConfigurationError(f"port {port} on {host} {reason}") from error
