"""The front of admission: requests wait here, in fair order, until everything that they need is free."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from services.errors import Overloaded
from services.gateway.admission.capacity import Capacity, PromptWindow
from services.gateway.admission.fair_queue import FairQueue, Head
from services.gateway.admission.limits import AdmissionLimits, Demand
from services.gateway.admission.prediction import OutputLengths
from services.gateway.admission.shares import Budget, Shares
from services.telemetry.clock import Clock
from services.telemetry.metrics import GatewayMetrics

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0
"""OpenAI's clients ignore longer advice."""
_SMOOTHING = 0.1


@dataclass(eq=False)
class _Turn:
    """One request, from its arrival to its end."""

    demand: Demand
    sequences: Budget
    prompts: Budget
    prompt_cost: int
    """Of each sequence."""
    tokens: Budget
    project_tokens: Budget
    came: "asyncio.Future[None]"
    on_prefilled: Callable[[], None]
    num_unfilled: int
    charged: float = 0.0
    num_generated: int = 0
    is_refused: bool = False

    def prefilled(self) -> None:
        """One more of its sequences has its first token."""
        self.num_unfilled -= 1
        self.prompts.in_use -= self.prompt_cost
        self.on_prefilled()

    def generated(self, num_tokens: int) -> None:
        """Count output tokens."""
        self.num_generated += num_tokens

    @property
    def needs(self) -> tuple[tuple[Budget, int], ...]:
        num_tokens = self.demand.num_tokens
        return (
            (self.sequences, self.demand.num_sequences),
            (self.prompts, self.num_unfilled * self.prompt_cost),
            (self.tokens, num_tokens),
            (self.project_tokens, num_tokens),
        )

    @property
    def cost(self) -> int:
        """What it really took."""
        return 0 if self.is_refused else self.demand.num_prompt_tokens + self.num_generated


class _Step(Enum):
    """What became of the first request of a pool."""

    ADMITTED = "admitted"
    POOL_WAITS = "nobody is left, or the pool's workers are busy"
    ALL_WAIT = "a limit that all share is reached"


class FairAdmission:
    """Admission of one gateway.

    Nobody overtakes at a limit that all share. Who is held up by a limit of his own project, or by workers
    that others do not need, holds up nobody else.
    """

    def __init__(
        self, limits: AdmissionLimits, shares: Shares, capacity: Capacity, clock: Clock, metrics: GatewayMetrics
    ) -> None:
        self._limits = limits
        self._shares = shares
        self._capacity = capacity
        self._clock = clock
        self._metrics = metrics
        self._queues: dict[str, FairQueue[_Turn]] = {}
        """By pool, while somebody waits for it; who was served last is last."""
        self._waiting_of: Counter[str] = Counter()
        self._parked: set[str] = set()
        self._lengths = OutputLengths()
        self._service_s = MIN_RETRY_S
        self.num_running = 0
        """Requests that have their turn."""
        shares.on_change = self._look_again

    @property
    def num_waiting(self) -> int:
        """Requests that wait for it."""
        return self._waiting_of.total()

    def require_room(self, project: str) -> None:
        """Refuse early, before any work, what would be refused later.

        Raises:
            Overloaded: too many wait already.
        """
        if self.num_waiting:  # else it may come in at once, whatever the queue can hold
            self._check_room(project, num_more=1)

    @asynccontextmanager
    async def admitted(self, demand: Demand) -> AsyncIterator[_Turn]:
        """Wait for a turn and hold it for the block.

        Raises:
            Overloaded: too many wait already, or the turn did not come in time.
        """
        turn, arrived_s = self._enter(demand), self._clock.now()
        await self._until_admitted(turn)
        admitted_s = self._clock.now()
        self._metrics.admission_wait.observe(admitted_s - arrived_s)
        try:
            yield turn
        except Overloaded as error:
            turn.is_refused = True
            error.retry_after_s = max(error.retry_after_s or 0.0, self._retry_after_s(demand.project))
            self._metrics.admission_refusals.labels(reason="workers_full").inc()
            raise
        finally:
            self._service_s += _SMOOTHING * (self._clock.now() - admitted_s - self._service_s)
            self._end(turn)

    # -- waiting -------------------------------------------------------------------------------------

    def _enter(self, demand: Demand) -> _Turn:
        window, num_sequences = self._capacity.prompt_window(demand.pool), demand.num_sequences
        turn = _Turn(
            demand,
            sequences=self._sequences(demand.pool),
            prompts=self._prompts(demand.pool, window),
            prompt_cost=window.cost(demand.num_prompt_tokens // num_sequences),
            tokens=self._shares.budget("tokens", self._limits.max_tokens),
            project_tokens=self._shares.budget(f"tokens:{demand.project}", self._limits.max_project_tokens),
            came=asyncio.get_running_loop().create_future(),
            on_prefilled=self._wake,
            num_unfilled=num_sequences,
        )
        for budget, amount in turn.needs:
            budget.num_wanted += amount
        self._waiting_of[demand.project] += 1
        queue = self._queues.setdefault(demand.pool, FairQueue(self._limits.weights))
        queue.push(demand.project, turn, priority=demand.priority)
        self._wake()
        return turn

    async def _until_admitted(self, turn: _Turn) -> None:
        if turn.came.done():
            return
        project = turn.demand.project
        try:
            self._check_room(project, num_more=0)
            if any(budget.is_short for budget, _ in turn.needs):
                self._shares.need()
            async with asyncio.timeout(self._limits.max_wait_s):
                await turn.came
        except TimeoutError as error:
            self._withdraw(turn)
            text = f"No turn came within {self._limits.max_wait_s:g} s."
            raise self._refusal("timeout", text, project) from error
        except (Overloaded, asyncio.CancelledError):
            self._withdraw(turn)
            raise

    def _check_room(self, project: str, *, num_more: int) -> None:
        if self.num_waiting + num_more > self._limits.max_waiting:
            raise self._refusal("queue_full", "Too many requests are waiting.", project)
        if self._waiting_of[project] + num_more > self._limits.max_project_waiting:
            raise self._refusal("project_queue_full", "Too many requests of this project are waiting.", project)

    def _refusal(self, reason: str, text: str, project: str) -> Overloaded:
        self._metrics.admission_refusals.labels(reason=reason).inc()
        return Overloaded(text, retry_after_s=self._retry_after_s(project))

    def _retry_after_s(self, project: str) -> float:
        """Return when the project's next request would have its turn, at the pace of the last ones."""
        ahead = min(self.num_waiting, self._waiting_of[project] * len(self._waiting_of)) + 1
        return min(max(ahead * self._service_s / max(self.num_running, 1), MIN_RETRY_S), MAX_RETRY_S)

    def _withdraw(self, turn: _Turn) -> None:
        if self._take_out(turn):
            self._wake()
        elif turn.came.done() and not turn.came.cancelled():  # its turn came while it was giving up
            turn.is_refused = True
            self._end(turn)

    def _take_out(self, turn: _Turn) -> bool:
        """End a request's waiting without a turn; return whether it waited."""
        queue = self._queues.get(turn.demand.pool)
        if queue is None or not queue.withdraw(turn.demand.project, turn):
            return False
        self._left(turn)
        return True

    def _left(self, turn: _Turn) -> None:
        """Count a request as waiting no more."""
        for budget, amount in turn.needs:
            budget.num_wanted -= amount
        project = turn.demand.project
        self._waiting_of[project] -= 1
        if not self._waiting_of[project]:
            del self._waiting_of[project]
            self._parked.discard(project)

    # -- turns ---------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let in whoever can, the pools one after the other."""
        pools = deque(self._queues)
        while pools:
            pool = pools.popleft()
            step = self._serve_first(pool)
            if step is _Step.ALL_WAIT:
                return
            if step is _Step.ADMITTED:
                self._queues[pool] = self._queues.pop(pool)
                pools.append(pool)
            elif not self._queues[pool]:
                del self._queues[pool]

    def _serve_first(self, pool: str) -> _Step:
        queue, sequences = self._queues[pool], self._sequences(pool)
        prompts = self._prompts(pool, self._capacity.prompt_window(pool))
        while (head := queue.head()) is not None:
            turn = head.item
            num_tokens = turn.demand.num_tokens
            if turn.came.cancelled():  # it gave up, but did not run since then
                self._take_out(turn)
                continue
            is_too_wide = not sequences.fits(turn.demand.num_sequences)
            if is_too_wide or not prompts.fits(turn.num_unfilled * turn.prompt_cost):
                break
            if not turn.project_tokens.fits(num_tokens):
                queue.park(head.project)
                self._parked.add(head.project)
            elif self.num_running >= self._limits.max_requests or not turn.tokens.fits(num_tokens):
                return _Step.ALL_WAIT
            else:
                self._admit(queue, head)
                return _Step.ADMITTED
        return _Step.POOL_WAITS

    def _admit(self, queue: FairQueue[_Turn], head: Head[_Turn]) -> None:
        turn, demand = head.item, head.item.demand
        longest = demand.max_output_tokens / demand.num_sequences
        predicted = demand.num_sequences * self._lengths.predicted(demand.project, longest)
        turn.charged = demand.num_prompt_tokens + predicted
        queue.serve(head, turn.charged)
        self._left(turn)
        for budget, amount in turn.needs:
            budget.in_use += amount
        self.num_running += 1
        turn.came.set_result(None)

    def _end(self, turn: _Turn) -> None:
        demand = turn.demand
        for budget, amount in turn.needs:
            budget.in_use -= amount
        self.num_running -= 1
        if turn.num_generated:
            self._lengths.observe(demand.project, turn.num_generated / demand.num_sequences)
        if (queue := self._queues.get(demand.pool)) is not None:
            queue.correct(demand.project, turn.cost - turn.charged)
        self._unpark(demand.project)
        self._wake()

    def _look_again(self) -> None:
        """Shares or workers have changed."""
        for project in tuple(self._parked):
            self._unpark(project)
        self._wake()

    def _unpark(self, project: str) -> None:
        if project in self._parked:
            self._parked.discard(project)
            for queue in self._queues.values():
                queue.unpark(project)

    def _sequences(self, pool: str) -> Budget:
        return self._shares.budget(f"sequences:{pool}", self._capacity.num_sequences(pool))

    def _prompts(self, pool: str, window: PromptWindow) -> Budget:
        return self._shares.budget(f"prompts:{pool}", window.num_tokens)
