"""vLLM on this host: whole on all cores, the same with small chunks, and P/D over NIXL with half the cores each."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.catalog import CHUNKED, PD, WHOLE
from bench.processes import Command, await_answer, free_port, started
from bench.systems import Endpoint, System
from services.cli.shares import divide
from services.resources import available_cpus

SERVED_NAME = "model"
CONTEXT_TOKENS = 4096
KV_CACHE_GIB = 2
CHUNK_TOKENS = 256
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}


@dataclass(frozen=True)
class Vllm:
    """Where vLLM is installed, and the folder of the model that it serves."""

    environment: Path
    model: Path

    def systems(self) -> tuple[System, ...]:
        """Return the three that goals speak of."""
        chunked = ("--max-num-batched-tokens", str(CHUNK_TOKENS))
        return (self._whole(WHOLE), self._whole(CHUNKED, chunked), self._disaggregated(PD))

    def command(
        self,
        port: int,
        options: Sequence[str] = (),
        *,
        settings: Mapping[str, str] | None = None,
        cores: Sequence[int] = (),
    ) -> Command:
        """Return the command of one server; ``settings`` are environment variables."""
        program = str(self.environment / "bin" / "vllm")
        address = ("--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED_NAME)
        shape = ("--dtype", "bfloat16", "--max-model-len", str(CONTEXT_TOKENS))
        return Command(
            (program, "serve", str(self.model), *address, *shape, *options), {**_ENVIRONMENT, **(settings or {})}, cores
        )

    def half(self, port: int, side_channel_port: int, cores: Sequence[int]) -> Command:
        """Return the command of the prefill or of the decode server, which differ in nothing but their place."""
        settings = {
            **_threads_on(cores),
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_channel_port),
        }
        return self.command(port, ("--kv-transfer-config", json.dumps(_NIXL)), settings=settings, cores=cores)

    def _whole(self, name: str, options: Sequence[str] = ()) -> System:
        @contextmanager
        def serve(logs: Path) -> Iterator[Endpoint]:
            port, log = free_port(), logs / f"{name}.log"
            with started(self.command(port, options, settings=_threads_on(available_cpus().ids)), log) as process:
                await_answer(f"http://127.0.0.1:{port}/health", process, log)
                yield Endpoint(f"http://127.0.0.1:{port}", SERVED_NAME)

        return System(name, serve)

    def _disaggregated(self, name: str) -> System:
        @contextmanager
        def serve(logs: Path) -> Iterator[Endpoint]:
            cores = available_cpus().ids
            halves = divide(cores, 2) if len(cores) > 1 else [cores, cores]
            with ExitStack() as stack:
                servers = []
                for role, share in zip(("prefill", "decode"), halves, strict=True):
                    port, log = free_port(), logs / f"{name}-{role}.log"
                    process = stack.enter_context(started(self.half(port, free_port(), share), log))
                    servers.append((f"http://127.0.0.1:{port}", process, log))
                for url, process, log in servers:
                    await_answer(f"{url}/health", process, log)
                port, log = free_port(), logs / f"{name}-proxy.log"
                process = stack.enter_context(started(proxy_command(port, *(url for url, _, _ in servers)), log))
                await_answer(f"http://127.0.0.1:{port}/health", process, log)
                yield Endpoint(f"http://127.0.0.1:{port}", SERVED_NAME)

        return System(name, serve)


def _threads_on(cores: Sequence[int]) -> dict[str, str]:
    """Return what makes vLLM compute on all of ``cores``; by itself it leaves one of them to other work."""
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}


def proxy_command(port: int, prefill_url: str, decode_url: str) -> Command:
    """Return the command of the proxy before both servers."""
    return Command((sys.executable, "-m", "bench.peers.proxy", str(port), prefill_url, decode_url), {})


def environment(text: str) -> Path:
    """Read the option ``--vllm``: a folder made by ``install_vllm.sh``."""
    if not (Path(text) / "bin" / "vllm").is_file():
        raise argparse.ArgumentTypeError(f"{text} has no bin/vllm: make it with bench/peers/install_vllm.sh {text}")
    return Path(text).absolute()
