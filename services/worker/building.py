"""From settings to an engine that can run: weights, KV pool, scheduler, sampler, and what others must know of it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from services import resources
from services.engine import probe
from services.engine.card import build_card
from services.engine.engine import Engine
from services.engine.grammar import Grammars, NoGrammars
from services.engine.host_store import HostStore
from services.engine.kv_cache import KVCache
from services.engine.limits import SchedulerConfig
from services.engine.llguidance_grammar import LLGuidanceGrammars
from services.engine.loading import LoadedModel, LoadProgress, load_model
from services.engine.parking import Parking
from services.engine.sampler import BatchSampler
from services.engine.scheduler import Scheduler
from services.engine.selection import default_operators
from services.engine.transformers_model import TransformersModel
from services.engine.weights.identity import model_identity
from services.engine.weights.sources import ModelFolder, resolve_model
from services.errors import ConfigurationError
from services.kv.card import ModelCard
from services.kv.layout import KVLayout
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger
from services.transfer.memory import KVMemory
from services.worker.settings import WorkerSettings

_log = get_logger(__name__)
_PROGRESS_INTERVAL_S = 2.0
_MIN_BLOCKS = 16


@dataclass(frozen=True)
class Built:
    """An engine ready to run, and its memory as transports see it."""

    engine: Engine
    grammars: Grammars
    cache: KVCache
    layout: KVLayout
    card: ModelCard

    @property
    def memory(self) -> KVMemory:
        """The KV pool for registration by a transport."""
        return KVMemory(
            address=self.cache.buffer.address,
            num_blocks=self.cache.num_blocks,
            block_bytes=self.layout.block_bytes,
            view=self.cache.view,
            device=str(self.cache.device),
        )


def build(settings: WorkerSettings, *, clock: Clock) -> Built:
    """Load the model and lay out its KV pool; takes seconds to minutes and blocks.

    With a fault plan the memory has one more block at its end, which the engine does not know.

    Raises:
        ConfigurationError: the model cannot be found or the memory does not suffice.
        ModelRefused: the model cannot run here.
    """
    threads = settings.threads or resources.available_cpus().count
    torch.set_num_threads(threads)
    cache_dir = settings.cache_dir.expanduser()
    folder = resolve_model(settings.model, cache_dir=cache_dir, dtype=settings.dtype, progress=_log_resolving)
    loaded = _load(settings, folder.path, threads=threads, clock=clock)
    layout = KVLayout(
        model_identity=model_identity(folder.path, cache_dir=cache_dir, verify=settings.verify_weights),
        numerics_class=loaded.numerics_class,
        block_size=loaded.block_size,
        planes=loaded.planes,
    )
    num_blocks = _num_blocks(settings, layout)
    cache = KVCache(layout, num_blocks + (settings.fault_plan is not None), loaded.device)
    model = TransformersModel(loaded, cache)
    invariance = probe.check_row_invariance(model, loaded.vocab_size, layout.block_size)
    if not invariance.is_exact:
        _log.warning(
            "engine.inexact", differing=",".join(invariance.differing), max_difference=invariance.max_difference
        )
    card = _card(settings, folder, layout, loaded, num_blocks)
    scheduler = Scheduler(_limits(settings, loaded, num_blocks), _parking(settings, cache))
    _log.event(
        "engine.ready",
        model=folder.name,
        numerics_class=layout.numerics_class,
        exact=invariance.is_exact,
        threads=threads,
        kv_bytes=num_blocks * layout.block_bytes,
        kv_blocks=num_blocks,
        kv_tokens=num_blocks * layout.block_size,
    )
    return Built(
        engine=Engine(model, BatchSampler(), scheduler),
        grammars=_grammars(card),
        cache=cache,
        layout=layout,
        card=card,
    )


def _grammars(card: ModelCard) -> Grammars:
    """Return grammars over the model's tokenizer, or none for the rare one that they cannot be built on."""
    try:
        return LLGuidanceGrammars(card.tokenizer_json, vocab_size=card.vocab_size, end_token_ids=card.eos_token_ids)
    except ValueError as error:
        _log.warning("grammars.unavailable", model=card.model_name, reason=str(error))
        return NoGrammars()


def _load(settings: WorkerSettings, folder: Path, *, threads: int, clock: Clock) -> LoadedModel:
    device = torch.device(settings.device)
    operators = default_operators(
        device,
        getattr(torch, settings.dtype),
        cache_folder=settings.cache_dir.expanduser() / "kernels",
        num_threads=threads,
        exact=settings.exact,
    )
    return load_model(
        folder,
        dtype=settings.dtype,
        operators=operators,
        device=device,
        context_length=settings.max_model_len or None,
        progress=_LoadLog(clock),
    )


class _LoadLog:
    """Logs how far the weights are, now and then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_s = clock.now() + _PROGRESS_INTERVAL_S

    def __call__(self, progress: LoadProgress) -> None:
        if progress.num_bytes < progress.total_bytes and self._clock.now() < self._next_s:
            return
        self._next_s = self._clock.now() + _PROGRESS_INTERVAL_S
        share = progress.num_bytes / max(1, progress.total_bytes)
        _log.event("weights.loading", percent=round(100 * share), total_mib=progress.total_bytes >> 20)


def _log_resolving(what: str, share: float | None) -> None:
    _log.event("model.preparing", step=repr(what), percent="-" if share is None else round(100 * share))


def _parking(settings: WorkerSettings, cache: KVCache) -> Parking:
    num_slots = settings.parked_memory_bytes // cache.layout.block_bytes
    return Parking(HostStore(cache, num_slots) if num_slots else None)


def _num_blocks(settings: WorkerSettings, layout: KVLayout) -> int:
    room = settings.kv_memory_bytes or int(settings.kv_memory_share * _free_bytes(settings))
    num_blocks = room // layout.block_bytes
    if num_blocks < _MIN_BLOCKS:
        raise ConfigurationError(
            f"A KV pool of {room} bytes holds {num_blocks} blocks of {layout.block_bytes} bytes; "
            f"at least {_MIN_BLOCKS} are needed. Set kv_memory_bytes.",
            param="kv_memory_bytes",
        )
    return num_blocks


def _free_bytes(settings: WorkerSettings) -> int:
    if settings.device == "cpu":
        return resources.available_memory_bytes()
    free, _ = torch.cuda.mem_get_info(settings.device)
    return free


def _limits(settings: WorkerSettings, loaded: LoadedModel, num_blocks: int) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=num_blocks,
        block_size=loaded.block_size,
        context_length=loaded.context_length,
        max_step_tokens=settings.max_step_tokens,
        max_mixed_prefill_tokens=settings.max_mixed_prefill_tokens,
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        num_speculative_tokens=settings.num_speculative_tokens,
        max_reserved_share=settings.max_reserved_share,
    )


def _card(
    settings: WorkerSettings, folder: ModelFolder, layout: KVLayout, loaded: LoadedModel, num_blocks: int
) -> ModelCard:
    return build_card(
        folder.path,
        name=settings.served_model_name or folder.name,
        layout=layout,
        context_length=min(loaded.context_length, num_blocks * layout.block_size),
    )
