"""Works on one run until it ends, waits for its client, or is lost to another gateway.

    queued --- plan the turn, write it down ---> in_progress --- write what the model says, batch by batch ---+
       ^                                                                                                     |
       +--- the client submits outputs <--- requires_action <--- calls --- the turn ends --- text ---> completed

Everything that decides the rest is in Redis before a client sees it, so another gateway that takes the run in any
place reads the plan and the log, and continues with the next token.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from copy import deepcopy
from dataclasses import dataclass, replace

from services.errors import (
    DeadlineExceeded,
    LeaseLost,
    ObjectNotFound,
    Overloaded,
    PeerError,
    StateUnavailable,
    TandemError,
    Unavailable,
)
from services.gateway.merge import Pump
from services.gateway.runs import endings, lifecycle
from services.gateway.runs.binding import Binding
from services.gateway.runs.citations import next_search
from services.gateway.runs.documents import ended_step
from services.gateway.runs.events import RunEvent, run_event, step_event
from services.gateway.runs.file_search import FileSearch
from services.gateway.runs.held import HeldRun, Writing
from services.gateway.runs.history import own_work, read_history
from services.gateway.runs.job import Job, Used
from services.gateway.runs.search_calls import Found, Search, StepNotes
from services.gateway.runs.transcript import Transcript, TranscriptWriter
from services.gateway.runs.turns import FullCall, TurnContext, TurnEnded, TurnEvent, TurnPlan, TurnRequest, Turns
from services.gateway.store.kinds import MESSAGE, STEP
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

MAX_HISTORY_CHARACTERS = 4_000_000
"""What lies further back in a thread is not read; no context is so long."""
_MAX_PAUSE_S = 5.0

_log = get_logger(__name__)


@dataclass(frozen=True)
class ExecutionLimits:
    """How a run is worked on."""

    flush_s: float
    """Least time between two writes of a run's text."""
    patience_s: float
    """How long a run waits for workers before it fails."""


class Execution:
    """The work on one run; ``run`` it once."""

    def __init__(self, held: HeldRun, turns: Turns, search: FileSearch, clock: Clock, limits: ExecutionLimits) -> None:
        self.held = held
        self._turns = turns
        self._search = search
        self._clock = clock
        self._limits = limits
        self._said = Transcript()
        self._pause_s = 0.1
        self._failing_since_s: float | None = None

    async def run(self) -> None:
        """Work until nothing is left to do here."""
        try:
            self._said = await transcript_of(self.held)
            if self.held.body["status"] == "requires_action":
                await self._leave_waiting()
            while self.held.body["status"] not in lifecycle.PAUSES:
                await self._step()
        except (LeaseLost, ObjectNotFound, StateUnavailable) as error:  # others go on with it, or nobody does
            _log.event("run.left", run=self.held.ref.id, reason=error.message)

    async def _leave_waiting(self) -> None:
        """Give a run that waits for its client back, unless its time is over."""
        if self.held.is_overdue:
            await end(self.held, self._said, endings.expired)
        else:
            await self.held.renew()

    async def _step(self) -> None:
        try:
            if self.held.is_overdue:
                await end(self.held, self._said, endings.expired)
            else:
                await self._turn()
        except DeadlineExceeded as error:
            await self._fail(error)
        except (LeaseLost, ObjectNotFound):
            raise
        except TandemError as error:
            if isinstance(error, StateUnavailable) and self.held.is_overdue:
                raise
            if not isinstance(error, (Overloaded, Unavailable, PeerError)) or not await self._waited():
                await self._fail(error)

    async def _fail(self, error: TandemError) -> None:
        if self.held.is_overdue:
            await end(self.held, self._said, endings.expired)
            return
        _log.warning("run.failed", run=self.held.ref.id, code=error.code, reason=error.message)
        await end(self.held, self._said, lambda run, job, said, now: endings.failed(run, job, said, now, error=error))

    async def _waited(self) -> bool:
        """Let some time pass for workers to come back; return whether it is worth another attempt."""
        now_s = self._clock.now()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if now_s - self._failing_since_s >= self._limits.patience_s:
            return False
        await self._clock.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
        return True

    async def _turn(self) -> None:
        plan = self.held.job.plan or await self._begin()
        if plan is None:
            return
        ended = await self._write(plan)
        await self._finish(plan, ended)

    async def _begin(self) -> TurnPlan | None:
        """Decide how the next turn is made, and write it down; end the run if a limit forbids the turn."""
        held, job = self.held, self.held.job
        if self._is_used_up(job):
            await self._end_incomplete("max_completion_tokens")
            return None
        if job.waiting_messages:
            job = replace(job, waiting_messages=())
            await held.commit(Writing((), job, creations=held.new_messages(held.job.waiting_messages)))
        history = await read_history(held.runs.objects, held.ref, held.thread, max_characters=MAX_HISTORY_CHARACTERS)
        used = job.used
        plan = await self._turns.plan(TurnRequest(held.body, history, used.prompt_tokens, used.completion_tokens))
        if plan is None:
            await self._end_incomplete("max_prompt_tokens")
            return None
        self._said = Transcript()
        is_queued = held.body["status"] == "queued"
        events = [run_event(lifecycle.started(held.body, held.now))] if is_queued else []
        sources = {mark: file_id for entry in history for mark, file_id in entry.sources.items()}
        first_event = held.last_event + len(events) + 1
        await held.commit(Writing(events, replace(job, plan=plan, first_event=first_event, sources=sources)))
        return plan

    async def _write(self, plan: TurnPlan) -> TurnEnded:
        """Write what the model says until the turn is over."""
        held = self.held
        writer = self._writer(self._said)
        remaining_s = held.expires_ms / 1e3 - self._clock.wall()
        context = TurnContext(held.runs.project, held.ref.id, self._clock.now() + remaining_s)
        source = self._turns.write(context, plan, tuple(self._said.token_ids))
        async with aclosing(_batches(source, self._clock, self._limits.flush_s)) as batches:
            async for batch in batches:
                if events := writer.events([event for event in batch if not isinstance(event, TurnEnded)]):
                    await self._commit_parts(events)
                if isinstance(ended := batch[-1], TurnEnded):
                    return ended
        raise PeerError("The turn ended without saying so.")

    async def _commit_parts(self, events: Sequence[RunEvent]) -> None:
        await self.held.commit(Writing(events))
        self._failing_since_s, self._pause_s = None, 0.1

    async def _finish(self, plan: TurnPlan, ended: TurnEnded) -> None:
        """Close the turn: the run is complete, met a limit, goes on, or waits for the outputs of its calls."""
        held, said = self.held, deepcopy(self._said)  # what is not written down yet was not said
        writer = self._writer(said)
        closing = [*writer.events([ended]), *writer.opened_message()]
        turn = Used(len(plan.prompt_ids), len(said.token_ids), ended.cached_tokens, _kv_of(plan, ended))
        job = replace(held.job, turn=turn)
        if said.calls and ended.reason == "stop":
            found = await self._found(plan, said, ended.calls)
            await held.commit(_with_calls(held, job, said, [*closing, *writer.found(found)], found))
            self._said = said
            return
        private = await self._private(plan, said, ended)
        if ended.reason == "length":
            events = endings.incomplete(held.body, job, said, held.now, reason="max_completion_tokens")
        else:
            events = endings.completed(held.body, job, said, held.now)
        await held.commit(Writing([*closing, *events], job, private=private))
        _log.event("run.ended", run=held.ref.id, status=held.body["status"])

    async def _found(self, plan: TurnPlan, said: Transcript, calls: Sequence[FullCall]) -> dict[int, Found]:
        """Return what the searches among the calls found, by index."""
        held, wanted = self.held, [i for i, call in enumerate(said.calls) if call["type"] == "file_search"]
        if not wanted:
            return {}
        first = next_search(held.job.sources)
        searches = [Search(calls[index].arguments, first + place) for place, index in enumerate(wanted)]
        own = await own_work(held.runs.objects, held.ref, held.thread)
        found = await self._search.find(held.runs.project, held.body, plan.card_digest, searches, own.found)
        return dict(zip(wanted, found, strict=True))

    def _writer(self, said: Transcript) -> TranscriptWriter:
        return TranscriptWriter(said, self.held.body, lambda: self.held.now, self.held.job.sources)

    async def _private(self, plan: TurnPlan, said: Transcript, ended: TurnEnded) -> dict[str, bytes]:
        """Return the token ids that are kept with the message."""
        message = said.message
        if message is None:
            return {}
        own = await own_work(self.held.runs.objects, self.held.ref, self.held.thread)
        output_ids = said.token_ids[: len(said.token_ids) - ended.num_end_tokens]
        binding = Binding(
            card_digest=plan.card_digest,
            base=plan.base,
            tail_ids=plan.prompt_ids[plan.num_base_tokens :],
            output_ids=tuple(output_ids),
            prompt_chars=plan.prompt_chars,
            prompt_digest=plan.prompt_digest,
            first_message_id=plan.first_message_id,
            budget=plan.budget,
            lead=own.lead,
            sources=own.sources if own.lead else {},
        )
        return {message["id"]: binding.to_bytes()}

    def _is_used_up(self, job: Job) -> bool:
        limit = self.held.body["max_completion_tokens"]
        return limit is not None and job.used.completion_tokens >= limit

    async def _end_incomplete(self, reason: lifecycle.LimitReason) -> None:
        await end(
            self.held,
            Transcript(),
            lambda run, job, said, now: endings.incomplete(run, job, said, now, reason=reason),
        )


def _with_calls(
    held: HeldRun, job: Job, said: Transcript, events: Sequence[RunEvent], found: Mapping[int, Found]
) -> Writing:
    """Return the end of a turn with calls: the run waits for the outputs of functions, if there are any."""
    step = said.step_with_calls
    assert step is not None and job.turn is not None
    notes = StepNotes({said.calls[index]["id"]: each for index, each in found.items()})
    private = {step["id"]: notes.to_bytes()} if found else {}
    if said.functions:
        waiting = run_event(lifecycle.needs_outputs(held.body, said.functions, job.total.usage))
        return Writing([*events, waiting], job, [(STEP.ref(step["id"]), step)], private)
    ended = step_event(ended_step(step, "completed", held.now, usage=job.turn.usage))
    said.apply(ended)
    return Writing([*events, ended], job.next_turn(), private=private)


async def end(held: HeldRun, said: Transcript, ending: endings.Ending, *, is_patient: bool = True) -> None:
    """End a run wherever it stands."""
    await held.commit(Writing(ending(held.body, held.job, said, held.now)), is_patient=is_patient)
    _log.event("run.ended", run=held.ref.id, status=held.body["status"])


async def transcript_of(held: HeldRun) -> Transcript:
    """Return what the open turn of a run has said, and learn the versions of its open objects."""
    if held.job.plan is None:
        return Transcript()
    said, position = Transcript(), held.job.first_event - 1
    while entries := await held.runs.read(held.ref, position):
        for entry in entries:
            said.apply(entry.event)
        position = entries[-1].number
    for kind, body in ((STEP, said.step), (MESSAGE, said.message)):
        if body is not None:
            record = await held.runs.objects.get(kind.ref(body["id"]))
            held.learn(record)
    return said


async def _batches(
    source: AsyncGenerator[TurnEvent, None], clock: Clock, flush_s: float
) -> AsyncGenerator[list[TurnEvent], None]:
    """Yield events as they come, all that came while the one before was written, at most one batch per ``flush_s``."""
    async with Pump([source]) as pump:
        while (batch := await pump.next()) is not None:
            started_s = clock.now()
            yield batch
            if (left_s := started_s + flush_s - clock.now()) > 0:
                await clock.sleep(left_s)


def _kv_of(plan: TurnPlan, ended: TurnEnded) -> str | None:
    """Return what was found of the KV of the context that the prompt begins with."""
    expected = plan.num_base_tokens // ended.block_size * ended.block_size
    if not expected:
        return None
    if not ended.cached_tokens:
        return "expired"
    return "hit" if ended.cached_tokens >= expected else "partial"
