"""Which processes make the cluster of ``tandem up``, with which settings and which share of the machine."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.cli.child import ProcessSpec
from services.cli.settings import UpSettings
from services.cli.shares import CoreShare, share_cores, share_gpus, share_kv_memory
from services.cli.state import secret_path
from services.command_line import CONFIG_OPTION, display, option_name, variable_name
from services.config import Loaded, SettingsT, Source, load
from services.decode.settings import DecodeSettings
from services.embed.settings import EmbedSettings
from services.errors import ConfigurationError
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings
from services.resources import Cpus
from services.worker.settings import WorkerSettings

HANDED_TO_ALL = ("log_level", "log_json")
"""Fields of UpSettings that every process has too."""
HANDED_TO_WORKERS = ("model", "served_model_name", "dtype", "device", "transport", "max_model_len", "cache_dir")
"""Fields of UpSettings that the workers have too."""
HANDED_TO_EMBED = ("cache_dir",)
"""Those of them that embedding workers have."""

_LOOPBACK = "127.0.0.1"
_LEAVING_S = 5.0
"""What a process needs to leave once it is drained."""


@dataclass(frozen=True)
class Machine:
    """What there is to share."""

    cpus: Cpus
    available_memory_bytes: int
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Preparation:
    """A model that must be ready before workers start, so that they do not all download or convert it."""

    model: str
    dtype: str
    cache_dir: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The command that prepares it."""
        options = ("--model", self.model, "--dtype", self.dtype, "--cache-dir", str(self.cache_dir))
        return (sys.executable, "-m", "services.cli.prepare", *options)


@dataclass(frozen=True)
class WorkerPlan:
    """One worker, and what it needs first."""

    spec: ProcessSpec
    preparation: Preparation
    share: str
    """What it got of the machine, for people."""


@dataclass(frozen=True)
class Plan:
    """Everything that ``tandem up`` starts besides Redis."""

    gateway: ProcessSpec
    prefill: tuple[WorkerPlan, ...]
    decode: tuple[WorkerPlan, ...]
    embed: tuple[ProcessSpec, ...] = ()
    """Nobody waits for them."""

    @property
    def workers(self) -> tuple[WorkerPlan, ...]:
        """All workers that have a share of the machine."""
        return (*self.prefill, *self.decode)

    @property
    def preparations(self) -> tuple[Preparation, ...]:
        """Every model that some worker needs, once."""
        return tuple(dict.fromkeys(worker.preparation for worker in self.workers))


@dataclass(frozen=True)
class _Basis:
    """What all processes have in common."""

    up: UpSettings
    machine: Machine
    values: Mapping[str, object]
    """Settings that every process gets."""
    worker_values: Mapping[str, object]
    """Settings that every worker gets besides."""
    config_options: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def num_workers(self) -> int:
        return self.up.prefill + self.up.decode

    @property
    def drain_timeout_s(self) -> float:
        """Time for running work that leaves a process time to end by itself; half of it where there is little."""
        return max(self.up.stop_timeout_s - _LEAVING_S, self.up.stop_timeout_s / 2)


def make_plan(loaded: Loaded[UpSettings], machine: Machine, *, redis_url: str, environment: Mapping[str, str]) -> Plan:
    """Return the processes with their settings, each checked against its settings class.

    Args:
        loaded: the settings of ``tandem up``.
        machine: what is shared between the workers.
        redis_url: where membership is kept. It may hold a password, so it travels in the environment.
        environment: what the processes inherit.

    Raises:
        ConfigurationError: a process would refuse its settings.
    """
    up = loaded.settings
    basis = _Basis(
        up=up,
        machine=machine,
        values={**_handed_on(loaded, HANDED_TO_ALL), "secret_file": secret_path(up.data_dir)},
        worker_values=_handed_on(loaded, HANDED_TO_WORKERS),
        config_options=() if loaded.config_file is None else (CONFIG_OPTION, str(loaded.config_file)),
        environment={**environment, variable_name("redis_url"): redis_url},
    )
    cores = share_cores(machine.cpus, basis.num_workers, pin=up.pin_cores)
    gpus = share_gpus(machine.gpus, basis.num_workers)
    shares = list(zip(cores, gpus, strict=True))
    prefill = [_plan_worker(basis, "prefill", number, *share) for number, share in enumerate(shares[: up.prefill])]
    decode = [_plan_worker(basis, "decode", number, *share) for number, share in enumerate(shares[up.prefill :])]
    embed = [_plan_embed(basis, number) for number in range(up.embed)]
    return Plan(_plan_gateway(basis), tuple(prefill), tuple(decode), tuple(embed))


def _handed_on(loaded: Loaded[UpSettings], names: Iterable[str]) -> dict[str, object]:
    """Return what was set for the processes, except at the file's top level: they see that themselves."""
    values = {name: getattr(loaded.settings, name) for name in names}
    origins = loaded.provenance
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (origins[name].source is Source.FILE and origins[name].section is None)
    }


def _plan_gateway(basis: _Basis) -> ProcessSpec:
    decided = {"host": basis.up.host, "port": basis.up.port, "serve_admin_on_main": True}
    options = _options({**basis.values, **decided})
    loaded = _load(basis, "gateway", GatewaySettings, options)
    options += _options(_unless_set(loaded, {"admin_port": 0, "drain_timeout_s": basis.drain_timeout_s}))
    return _spec(basis, "gateway", "gateway", options)


def _plan_embed(basis: _Basis, number: int) -> ProcessSpec:
    handed = {name: value for name, value in basis.worker_values.items() if name in HANDED_TO_EMBED}
    decided = {"host": _LOOPBACK, "port": 0, "admin_port": 0}
    options = _options({**basis.values, **handed, **decided})
    loaded = _load(basis, "embed", EmbedSettings, options)
    options += _options(_unless_set(loaded, {"drain_timeout_s": basis.drain_timeout_s}))
    return _spec(basis, f"embed-{number}", "embed", options)


def _plan_worker(basis: _Basis, kind: str, number: int, share: CoreShare, gpus: tuple[str, ...]) -> WorkerPlan:
    settings_class = PrefillSettings if kind == "prefill" else DecodeSettings
    decided = {"host": _LOOPBACK, "port": 0, "admin_port": 0}
    options = _options({**basis.values, **basis.worker_values, **decided})
    loaded = _load(basis, kind, settings_class, options)
    settings = loaded.settings
    suggested = _unless_set(
        loaded,
        {"threads": share.threads, "drain_timeout_s": basis.drain_timeout_s, **_kv_memory(basis, loaded)},
    )
    options += _options(suggested)
    spec = _spec(basis, f"{kind}-{number}", kind, options, cores=share.cores, gpus=_gpus_of(settings, gpus))
    preparation = Preparation(settings.model, settings.dtype, settings.cache_dir)
    return WorkerPlan(spec, preparation, _describe(share, suggested, _gpus_of(settings, gpus)))


def _kv_memory(basis: _Basis, loaded: Loaded[WorkerSettings]) -> dict[str, object]:
    """Suggest a share of the free memory, since workers that start together would all count the same bytes."""
    if loaded.settings.device != "cpu" or loaded.provenance["kv_memory_share"].source is not Source.DEFAULT:
        return {}
    free_bytes = basis.machine.available_memory_bytes
    return {"kv_memory_bytes": share_kv_memory(free_bytes, basis.up.kv_memory_share_of_all, basis.num_workers)}


def _gpus_of(settings: WorkerSettings, gpus: tuple[str, ...]) -> tuple[str, ...]:
    if settings.device == "cpu":
        return ()
    if not gpus:
        raise ConfigurationError(f"device is {settings.device}, but no GPU can be seen here")
    return gpus


def _load(basis: _Basis, kind: str, settings_class: type[SettingsT], options: list[str]) -> Loaded[SettingsT]:
    argv = [*basis.config_options, *options]
    try:
        return load(settings_class, argv, prog=f"tandem {kind}", environment=basis.environment)
    except ConfigurationError as error:
        raise ConfigurationError(f"{kind}: {error}") from error


def _unless_set(loaded: Loaded[SettingsT], values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if loaded.provenance[name].source is Source.DEFAULT}


def _options(values: Mapping[str, object]) -> list[str]:
    """Return the command line that gives these values."""
    options: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            options.append(option_name(name) if value else "--no-" + option_name(name)[2:])
        else:
            options += [option_name(name), display(value)]
    return options


def _spec(
    basis: _Basis, name: str, kind: str, options: list[str], *, cores: tuple[int, ...] = (), gpus: tuple[str, ...] = ()
) -> ProcessSpec:
    environment = {**basis.environment, "CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else basis.environment
    command = (sys.executable, "-m", "services.cli", kind, *basis.config_options, *options)
    return ProcessSpec(name, command, environment, cores, basis.up.stop_timeout_s)


def _describe(share: CoreShare, suggested: Mapping[str, object], gpus: tuple[str, ...]) -> str:
    parts = [f"cores {','.join(map(str, share.cores))}" if share.cores else "any core", f"{share.threads} threads"]
    kv_bytes = suggested.get("kv_memory_bytes")
    if isinstance(kv_bytes, int):
        parts.append(f"{kv_bytes / 2**30:.1f} GiB of KV cache")
    if gpus:
        parts.append(f"GPU {','.join(gpus)}")
    return ", ".join(parts)
