"""The runs of this gateway: made, taken from others, cancelled, continued; each worked on by a task of its own."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.cluster.background import end_all
from services.errors import (
    Conflict,
    InternalError,
    LeaseLost,
    ObjectNotFound,
    ObjectRefused,
    RunEnded,
    StateUnavailable,
)
from services.gateway.runs import endings, lifecycle
from services.gateway.runs.documents import ended_step, with_calls
from services.gateway.runs.events import RunEvent, numbered, run_event, step_event
from services.gateway.runs.execution import Execution, ExecutionLimits, end, transcript_of
from services.gateway.runs.feed import Feed, RunKey
from services.gateway.runs.file_search import FileSearch
from services.gateway.runs.held import HeldRun, LeaseTerms, Writing
from services.gateway.runs.job import Job
from services.gateway.runs.lifecycle import ENDS, Body
from services.gateway.runs.operations import ClaimThread, ForgetRun, TakeRun, WriteRun
from services.gateway.runs.storage import RunStorage
from services.gateway.runs.turns import Turns
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import THREAD, Ref
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class NewRun:
    """A run to be made."""

    ref: Ref
    body: Body
    messages: Sequence[Create] = ()
    """Messages that it adds to its thread."""
    thread: Sequence[Create] = ()
    """The thread and its messages, if they are made together with the run."""
    may_wait: bool = False
    """Whether it waits for its turn if another run has the thread."""

    @property
    def thread_ref(self) -> Ref:
        """The thread of the run."""
        return THREAD.ref(self.body["thread_id"])

    def events(self) -> list[RunEvent]:
        """Return the events that begin the log."""
        made = [RunEvent("thread.created", create.body) for create in self.thread[:1]]
        return [*made, RunEvent("thread.run.created", self.body), run_event(self.body)]


@dataclass(frozen=True)
class RunServices:
    """Finished collaborators."""

    storage: RunStorage
    feed: Feed
    turns: Turns
    search: FileSearch
    terms: LeaseTerms
    limits: ExecutionLimits
    on_taken: Callable[[], None]
    """Counts runs that are taken over."""


@dataclass
class _Work:
    """An execution and its task."""

    execution: Execution
    task: "asyncio.Task[None]" = field(init=False)


class Runs:
    """Makes runs and works on them; ``close`` it after use."""

    def __init__(self, services: RunServices) -> None:
        self._storage = services.storage
        self._feed = services.feed
        self._turns = services.turns
        self._search = services.search
        self._terms = services.terms
        self._limits = services.limits
        self._on_taken = services.on_taken
        self._working: dict[RunKey, _Work] = {}
        self._mending: set[asyncio.Task[None]] = set()

    def is_here(self, key: RunKey) -> bool:
        """Return whether this gateway works on a run."""
        return key in self._working

    def held(self) -> Mapping[RunKey, HeldRun]:
        """Return the runs that this gateway works on."""
        return {key: work.execution.held for key, work in self._working.items()}

    async def create(self, project: str, new: NewRun) -> None:
        """Write a run down and begin to work on it.

        Raises:
            ObjectNotFound: the thread does not exist.
            ObjectRefused: the thread has an active run, and the new one shall not wait.
            StateUnavailable: Redis cannot be reached.
        """
        await self._storage.register(project)
        runs = self._storage.of(project)
        job = Job(waiting_messages=[create.body for create in new.messages] if new.may_wait else ())
        entries = numbered(new.events(), 1)
        expires_ms = 1000 * int(new.body["expires_at"])
        claim = ClaimThread(new.thread_ref, new.ref, new.may_wait)
        operations: list[Operation] = [
            *new.thread,
            claim,
            *(() if new.may_wait else new.messages),
            Create(new.ref, new.body, new.thread_ref, private=job.to_bytes()),
            WriteRun(
                new.ref,
                1,
                self._terms.lease(new.body, expires_ms),
                entries,
                retention_s=self._terms.retention_s,
            ),
        ]
        dones = await runs.objects.apply(operations)
        _log.event("run.created", run=new.ref.id, thread=new.thread_ref.id, project=project)
        if not dones[operations.index(claim)].details["waits"]:
            last_event = entries[-1].number
            held = HeldRun(
                runs,
                self._terms,
                self._feed,
                new.ref,
                new.body,
                job,
                fence=1,
                last_event=last_event,
                versions={new.ref: 1},
            )
            self._work_on(held)

    async def take(self, project: str, run: Ref, *, is_forced: bool = False) -> HeldRun:
        """Become the gateway that holds a run; whoever held it can write no more.

        Raises:
            LeaseLost: another gateway holds it, and ``is_forced`` is false.
            RunEnded: it has ended.
            ObjectNotFound: there is no such run.
            StateUnavailable: Redis cannot be reached.
        """
        runs, now_ms = self._storage.of(project), self._terms.now_ms
        take = TakeRun(run, self._terms.owner, now_ms, self._terms.until_ms(now_ms), is_forced)
        [done] = await runs.objects.apply([take])
        record = await runs.objects.get(run, with_private=True)
        state = await runs.log_state(run)
        return HeldRun(
            runs,
            self._terms,
            self._feed,
            run,
            record.body,
            Job.from_bytes(record.private),
            fence=int(done.details["fence"]),
            last_event=state.last_event if state is not None else 0,
            versions={run: record.version},
        )

    async def work_on_due(self, project: str, run: Ref) -> None:
        """Take a run whose gateway is gone and go on with it; leave it alone if somebody else was faster."""
        try:
            held = await self.take(project, run)
        except (LeaseLost, RunEnded):
            return
        except ObjectNotFound:
            await self._storage.of(project).objects.apply([ForgetRun(run)])
            return
        self._on_taken()
        _log.event("run.taken", run=run.id, fence=held.fence, status=held.body["status"])
        self._work_on(held)

    async def cancel(self, project: str, run: Ref) -> Body:
        """End a run wherever it stands; return it as it is being cancelled.

        Raises:
            ObjectRefused: it has ended.
            ObjectNotFound: there is no such run.
            StateUnavailable: Redis cannot be reached.
        """
        while True:
            try:
                held = await self.take(project, run, is_forced=True)
            except RunEnded as error:
                record = await self._storage.of(project).objects.get(run)
                raise ObjectRefused(f"Cannot cancel run with status '{record.body['status']}'.") from error
            await self._stop((project, run))
            before = held.body
            try:
                await end(held, await transcript_of(held), endings.cancelled, is_patient=False)
            except LeaseLost:  # taken by another client's request, which is over soon
                continue
            await self._inherit(held)
            return {**lifecycle.cancelling(before), "metadata": held.body["metadata"]}

    async def submit(self, project: str, run: Ref, outputs: Sequence[tuple[str, str]]) -> tuple[Body, int]:
        """Give a run the outputs of its calls, by call id; return it and the last event before it goes on.

        Raises:
            ObjectRefused: it waits for none, or for those of other calls.
            ObjectNotFound: there is no such run.
            StateUnavailable: Redis cannot be reached.
        """
        _check_outputs((await self._storage.of(project).objects.get(run)).body, outputs)
        try:
            held = await self.take(project, run, is_forced=True)
        except RunEnded as error:
            record = await self._storage.of(project).objects.get(run)
            raise _takes_no_outputs(record.body) from error
        if held.body["status"] != "requires_action":  # somebody else submitted first, and we have the run now
            self._work_on(held)
            raise _takes_no_outputs(held.body)
        position, said = held.last_event, await transcript_of(held)
        if said.step is None or held.job.turn is None:
            raise InternalError(f"The run '{run.id}' waits for outputs, but its calls are gone.")
        step = with_calls(said.step, said.calls, dict(outputs))
        ended = step_event(ended_step(step, "completed", held.now, usage=held.job.turn.usage))
        queued = run_event(lifecycle.requeued(held.body))
        try:
            await held.commit(Writing([ended, queued], held.job.next_turn()), is_patient=False)
        except LeaseLost as error:
            raise _takes_no_outputs(queued.data) from error
        body = held.body
        self._work_on(held)
        return body, position

    async def renew(self, key: RunKey) -> None:
        """Extend the lease of a run, or stop working on it if another gateway has it."""
        work = self._working.get(key)
        if work is None:
            return
        try:
            await work.execution.held.renew()
        except (LeaseLost, ObjectNotFound) as error:
            _log.event("run.lost", run=key[1].id, reason=error.message)
            if self._working.get(key) is work:
                await self._stop(key)

    async def close(self) -> None:
        """Stop working on all runs; other gateways continue them."""
        await end_all([*(work.task for work in self._working.values()), *self._mending])

    def _work_on(self, held: HeldRun) -> None:
        key = (held.runs.project, held.ref)
        before = self._working.get(key)
        if before is not None and before.execution.held.fence > held.fence:
            return
        work = _Work(Execution(held, self._turns, self._search, self._terms.clock, self._limits))
        work.task = asyncio.create_task(self._run(work.execution), name=held.ref.id)
        self._working[key] = work
        if before is not None:
            before.task.cancel()
        work.task.add_done_callback(lambda task: self._ended(key, work, task))

    async def _run(self, execution: Execution) -> None:
        await execution.run()
        await self._inherit(execution.held)

    async def _inherit(self, ended: HeldRun) -> None:
        """Work on the run that got the thread of one that ended."""
        if ended.heir is not None and ended.body["status"] in ENDS and not self._terms.is_leaving:
            await self.work_on_due(ended.runs.project, Ref(ended.ref.kind, ended.heir))

    def _ended(self, key: RunKey, work: _Work, task: "asyncio.Task[None]") -> None:
        if self._working.get(key) is work:
            del self._working[key]
            self._feed.publish(key, ())  # readers look for another gateway
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.failure("run.defect", error, run=key[1].id)
            mending = asyncio.create_task(self._fail(key))
            self._mending.add(mending)
            mending.add_done_callback(self._mending.discard)

    async def _fail(self, key: RunKey) -> None:
        """End a run whose execution has a defect; if that fails too, it expires."""
        error = InternalError("The server had an error while working on this run.")
        try:
            held = await self.take(*key, is_forced=True)
            await end(
                held,
                await transcript_of(held),
                lambda run, job, said, now: endings.failed(run, job, said, now, error=error),
            )
        except (Conflict, ObjectNotFound, StateUnavailable) as failure:
            _log.warning("run.not_failed", run=key[1].id, reason=failure.message)

    async def _stop(self, key: RunKey) -> None:
        if (work := self._working.pop(key, None)) is not None:
            await end_all([work.task])


def _check_outputs(run: Body, outputs: Sequence[tuple[str, str]]) -> None:
    if run["status"] != "requires_action":
        raise _takes_no_outputs(run)
    calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    expected, given = [call["id"] for call in calls], [call_id for call_id, _ in outputs]
    if sorted(expected) != sorted(given):
        raise ObjectRefused(f"Expected tool outputs for call_ids {_quoted(expected)}, got {_quoted(given)}")


def _takes_no_outputs(run: Body) -> ObjectRefused:
    return ObjectRefused(f'Runs in status "{run["status"]}" do not accept tool outputs.')


def _quoted(ids: Sequence[str]) -> str:
    return "[" + ",".join(f"'{call_id}'" for call_id in ids) + "]"
