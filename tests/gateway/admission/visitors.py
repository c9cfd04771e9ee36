"""An admission with everything around it, and visitors who come in when admitted and stay until told to go."""

import asyncio
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from services.gateway.admission.capacity import PromptWindow
from services.gateway.admission.front import FairAdmission
from services.gateway.admission.ledger import MemoryShareLedger
from services.gateway.admission.limits import AdmissionLimits, Demand, Turn
from services.gateway.admission.shares import Shares
from services.telemetry.clock import ManualClock
from services.telemetry.metrics import REFUSAL_REASONS, GatewayMetrics

NO_WINDOW = PromptWindow()


class Workers:
    """Tells how much each pool takes."""

    def __init__(self, sequences: Mapping[str, int] | None = None, window: PromptWindow = NO_WINDOW) -> None:
        self.sequences = dict(sequences or {})
        self.window = window

    def num_sequences(self, pool: str) -> int:
        return self.sequences.get(pool, 0)

    def prompt_window(self, pool: str) -> PromptWindow:
        return self.window


class Door:
    """An admission with everything around it."""

    def __init__(self, workers: Workers | None = None, ledger: MemoryShareLedger | None = None, **limits: Any) -> None:
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.shares = Shares(ledger or MemoryShareLedger(self.clock), str(id(self)), self.clock)
        values: dict[str, Any] = {"max_requests": 2, "max_waiting": 100, "max_project_waiting": 100, "max_wait_s": 60.0}
        self.admission = FairAdmission(
            AdmissionLimits(**{**values, **limits}),
            self.shares,
            workers or Workers(),
            self.clock,
            GatewayMetrics(self.registry),
        )

    def visitor(self, project: str = "default", num_tokens: int = 10, **demand: Any) -> "Visitor":
        demand = {"pool": "model", "num_prompt_tokens": 1, "max_output_tokens": num_tokens - 1, **demand}
        return Visitor(self.admission, Demand(project, **demand))

    @property
    def counts(self) -> tuple[int, int]:
        return self.admission.num_running, self.admission.num_waiting

    def refusals(self) -> dict[str, float | None]:
        name = "tandem_admission_refusals_total"
        counted = {reason: self.registry.get_sample_value(name, {"reason": reason}) for reason in REFUSAL_REASONS}
        return {reason: number for reason, number in counted.items() if number}


class Visitor:
    """Comes in when admitted and stays until told to go."""

    def __init__(self, admission: FairAdmission, demand: Demand) -> None:
        self.is_in = False
        self.turn: Turn | None = None
        self._admission = admission
        self._demand = demand
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._admission.admitted(self._demand) as self.turn:
            self.is_in = True
            await self._leave.wait()
        self.is_in = False

    def tell_to_leave(self) -> None:
        self._leave.set()

    async def leave(self) -> None:
        self._leave.set()
        await self.task
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def inside(*visitors: Visitor) -> list[bool]:
    await settle()
    return [visitor.is_in for visitor in visitors]


async def all_leave(door: Door, *visitors: Visitor) -> None:
    """Everybody comes in sooner or later, and nothing is left behind."""
    for visitor in visitors:
        visitor.tell_to_leave()
    async with asyncio.timeout(30):
        await asyncio.gather(*(visitor.task for visitor in visitors))
    assert door.counts == (0, 0)
