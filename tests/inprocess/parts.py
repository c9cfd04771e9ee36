"""What a worker in this process is built from, and the parts below its servicers: engine, memory, transport, node."""

import secrets
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from services.cluster.registry import Role
from services.engine.engine import Engine
from services.engine.grammar import Grammars
from services.engine.limits import SchedulerConfig
from services.engine.parking import Parking
from services.engine.sampler import BatchSampler
from services.engine.scheduler import Scheduler
from services.faults.armed import ArmedFaults
from services.faults.plan import FaultPlan
from services.kv.card import ModelCard
from services.kv.layout import KVLayout
from services.telemetry.clock import SystemClock
from services.telemetry.metrics import WorkerMetrics
from services.transfer.faults import with_faults
from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.loop import TransferThread
from services.transfer.memory import KVMemory, allocate
from services.worker.arrivals import Arrivals
from services.worker.cache_feed import CacheFeed
from services.worker.engine_thread import EngineThread
from services.worker.grammar_compiler import GrammarCompiler
from services.worker.node import Node
from services.worker.seal import Sealer
from services.worker.settings import WorkerSettings
from services.worker.step_metrics import StepMetrics
from services.worker.throughput import Throughput
from tests.inprocess.fake_grammar import FakeGrammars
from tests.inprocess.faults import TransportFaults
from tests.inprocess.hash_model import BLOCK_SIZE, SLOT_BYTES, VOCAB_SIZE, HashModel, layout

CONTEXT_LENGTH = 512


@dataclass(frozen=True)
class Shape:
    """What differs between the workers of two tests."""

    num_blocks: int = 64
    layout: KVLayout = field(default_factory=layout)
    slot_bytes: int = SLOT_BYTES
    max_step_tokens: int = 8
    """Two blocks, so that prompts have many chunks."""
    max_running: int = 64
    num_parked: int = 0
    """Blocks of host memory beside the pool."""
    grammars: Grammars = field(default_factory=FakeGrammars)


def new_metrics() -> tuple[WorkerMetrics, CollectorRegistry]:
    prometheus = CollectorRegistry()
    return WorkerMetrics(prometheus), prometheus


@dataclass(frozen=True)
class Parts:
    """What a worker is made from."""

    role: Role
    shape: Shape
    settings: WorkerSettings
    metrics: WorkerMetrics
    prometheus: CollectorRegistry
    arrivals: Arrivals


@dataclass(frozen=True)
class Built:
    """A worker without its server; ``node.engine`` and ``node.transfers`` run, and are to be closed."""

    parts: Parts
    node: Node
    model: HashModel
    memory: KVMemory
    faults: TransportFaults
    steps: ArmedFaults
    defects: list[str]


def build(parts: Parts, fabric: InProcessFabric) -> Built:
    """Start the threads of a worker, under a new member id that is also its agent's name."""
    shape, clock, defects = parts.shape, SystemClock(), list[str]()
    member_id = f"{parts.role.value}-{secrets.token_hex(4)}"
    memory = allocate(shape.num_blocks + 1, shape.layout.block_bytes)
    model = HashModel(memory, shape.slot_bytes)
    cache_feed = CacheFeed(clock)
    sealer, throughput = Sealer(memory.block, enabled=parts.settings.payload_digests), Throughput()
    engine = EngineThread(
        Engine(model, BatchSampler(), _scheduler(parts, memory)),
        clock=clock,
        seal=sealer.seal,
        on_step=StepMetrics(parts.metrics, throughput),
        on_cache_change=cache_feed.changed,
        on_defect=lambda: defects.append("engine"),
    )
    inner = InProcessTransport(agent=member_id, fingerprint=shape.layout.fingerprint, memory=memory, fabric=fabric)
    faults, steps = TransportFaults(), ArmedFaults(FaultPlan())
    faulty = with_faults(with_faults(inner, faults, memory, faults.clock), steps, memory, clock)
    transfers = TransferThread(faulty, on_notice=parts.arrivals.on_notice)
    transfers.start()
    node = Node(
        member_id=member_id,
        role=parts.role,
        card=_card(shape),
        layout=shape.layout,
        engine=engine,
        cache_feed=cache_feed,
        grammars=GrammarCompiler(shape.grammars),
        transfers=transfers,
        sealer=sealer,
        throughput=throughput,
        clock=clock,
    )
    return Built(parts, node, model, memory, faults, steps, defects)


class MemoryStore:
    """Host memory for parked blocks."""

    def __init__(self, memory: KVMemory, num_slots: int) -> None:
        self.num_slots = num_slots
        self._memory = memory
        self._slots = [b""] * num_slots

    def save(self, block: int, slot: int) -> None:
        self._slots[slot] = bytes(self._memory.block(block))

    def load(self, slot: int, block: int) -> None:
        self._memory.block(block)[:] = self._slots[slot]


def _scheduler(parts: Parts, memory: KVMemory) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            num_blocks=parts.shape.num_blocks,
            block_size=BLOCK_SIZE,
            context_length=CONTEXT_LENGTH,
            max_step_tokens=parts.shape.max_step_tokens,
            max_mixed_prefill_tokens=min(parts.shape.max_step_tokens, parts.settings.max_mixed_prefill_tokens),
            max_running=parts.shape.max_running,
            max_waiting=parts.settings.max_waiting,
            max_reserved_share=parts.settings.max_reserved_share,
        ),
        Parking(MemoryStore(memory, parts.shape.num_parked)),
    )


def _card(shape: Shape) -> ModelCard:
    return ModelCard(
        model_name="hash",
        fingerprint=shape.layout.fingerprint,
        numerics_class=shape.layout.numerics_class,
        context_length=CONTEXT_LENGTH,
        vocab_size=VOCAB_SIZE,
        block_size=BLOCK_SIZE,
        block_bytes=shape.layout.block_bytes,
        eos_token_ids=(),
        tokenizer_json="{}",
        chat_template=None,
    )
