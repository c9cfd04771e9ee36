"""The jobs of this gateway: made, taken from others, ended, continued; each worked on by a task of its own."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from services.cluster.background import end_all
from services.errors import Conflict, InternalError, JobEnded, LeaseLost, ObjectNotFound, StateUnavailable
from services.gateway.jobs.events import ENDS, Body, Event, numbered
from services.gateway.jobs.execution import Ending, Execution, Expired, Failed, JobKind, Work
from services.gateway.jobs.feed import Feed, JobKey
from services.gateway.jobs.held import HeldJob, LeaseTerms
from services.gateway.jobs.operations import QUEUE, ClaimThread, WriteJob
from services.gateway.jobs.storage import JobStorage
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import Ref
from services.gateway.store.leases import ForgetLease, TakeLease
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class NewJob:
    """A job to be made."""

    ref: Ref
    body: Body
    private: bytes
    events: Sequence[Event]
    """What its log begins with."""
    expires_ms: int
    parent: Ref | None = None
    claim: ClaimThread | None = None
    before: Sequence[Operation] = ()
    """What the same change makes before it, such as its thread."""
    after: Sequence[Operation] = ()
    """What it makes after it, such as objects beneath it."""


@dataclass(frozen=True)
class JobServices:
    """Finished collaborators."""

    storage: JobStorage
    feed: Feed
    terms: LeaseTerms
    kinds: Sequence[JobKind]
    patience_s: float
    """How long a job waits for workers that fail or are gone before it fails."""
    on_taken: Callable[[], None]
    """Counts jobs that are taken over."""


@dataclass
class _Running:
    """An execution and its task."""

    execution: Execution
    task: "asyncio.Task[None]" = field(init=False)


class Jobs:
    """Makes jobs and works on them; ``close`` it after use."""

    def __init__(self, services: JobServices) -> None:
        self._storage = services.storage
        self._feed = services.feed
        self._terms = services.terms
        self._kinds = {each.kind: each for each in services.kinds}
        self._patience_s = services.patience_s
        self._on_taken = services.on_taken
        self._running: dict[JobKey, _Running] = {}
        self._mending: set[asyncio.Task[None]] = set()

    def is_here(self, key: JobKey) -> bool:
        """Return whether this gateway works on a job."""
        return key in self._running

    def held(self) -> Mapping[JobKey, HeldJob]:
        """Return the jobs that this gateway works on."""
        return {key: running.execution.held for key, running in self._running.items()}

    async def create(self, project: str, new: NewJob) -> None:
        """Write a job down and begin to work on it, unless it waits for its thread.

        Raises:
            ObjectNotFound: the thread or the parent does not exist.
            TandemError: what an operation of the change says that it cannot be done.
        """
        await self._storage.register(project)
        jobs, now_ms = self._storage.of(project), self._terms.now_ms
        entries = numbered(new.events, 1)
        claims: list[Operation] = [] if new.claim is None else [new.claim]
        write = WriteJob(
            new.ref,
            1,
            now_ms,
            self._terms.due_ms(new.body["status"], now_ms, new.expires_ms),
            new.expires_ms,
            entries,
            retention_s=self._terms.retention_s,
        )
        create = Create(new.ref, new.body, new.parent, private=new.private)
        dones = await jobs.objects.apply([*new.before, *claims, create, write, *new.after])
        _log.event("job.created", job=new.ref.id, project=project)
        if claims and dones[len(new.before)].details["waits"]:
            return
        held = HeldJob(
            jobs,
            self._terms,
            self._feed,
            new.ref,
            new.body,
            new.private,
            fence=1,
            last_event=len(entries),
            expires_ms=new.expires_ms,
            versions={new.ref: 1},
        )
        self.work_on(self.work(held))

    async def take(self, project: str, job: Ref, *, is_forced: bool = False) -> HeldJob:
        """Become the gateway that holds a job; whoever held it can write no more.

        Raises:
            LeaseLost: another gateway holds it, and ``is_forced`` is false, or took it while it was read here.
            JobEnded: it has ended.
            ObjectNotFound: there is no such job.
            StateUnavailable: Redis cannot be reached.
        """
        jobs, now_ms = self._storage.of(project), self._terms.now_ms
        take = TakeLease(QUEUE, job, now_ms, self._terms.until_ms(now_ms), is_forced)
        [done] = await jobs.objects.apply([take])
        record = await jobs.objects.get(job, with_private=True)
        state = await jobs.state(job)
        if state is None:
            raise InternalError(f"The {job.kind.noun} '{job.id}' is to be worked on, but has no log.")
        fence = int(done.details["fence"])
        if state.fence != fence:  # what was read may be of two states
            raise LeaseLost(f"Another gateway took the {job.kind.noun} '{job.id}' meanwhile.")
        return HeldJob(
            jobs,
            self._terms,
            self._feed,
            job,
            record.body,
            record.private,
            fence=fence,
            last_event=state.last_event,
            expires_ms=state.expires_ms,
            versions={job: record.version},
        )

    def work(self, held: HeldJob) -> Work:
        """Return what is to be done with a job; nothing is done yet.

        Raises:
            InternalError: its private state cannot be read: a defect or a newer version wrote it.
        """
        try:
            return self._kinds[held.ref.kind].work(held)
        except Exception as error:
            raise InternalError(f"The state of the {held.ref.kind.noun} '{held.ref.id}' cannot be read.") from error

    def work_on(self, work: Work) -> None:
        """Begin to work on a job that is held."""
        key = (work.held.jobs.project, work.held.ref)
        before = self._running.get(key)
        if before is not None and before.execution.held.fence > work.held.fence:
            return
        running = _Running(Execution(work, self._terms.clock, self._patience_s))
        running.task = asyncio.create_task(self._run(running.execution), name=work.held.ref.id)
        self._running[key] = running
        if before is not None:
            before.task.cancel()
        running.task.add_done_callback(lambda task: self._ended(key, running, task))

    async def work_on_due(self, project: str, job: Ref) -> None:
        """Take a job whose gateway is gone and go on with it; leave it alone if somebody else was faster.

        One that cannot be read is left until its lease ends, as another gateway may be able to, but not for longer than
        its time.

        Raises:
            StateUnavailable: Redis cannot be reached.
            InternalError: the job has no log.
        """
        try:
            held = await self.take(project, job)
        except (LeaseLost, JobEnded):
            return
        except ObjectNotFound:
            await self._storage.of(project).objects.apply([ForgetLease(QUEUE, job)])
            return
        try:
            work = self.work(held)
        except InternalError as error:
            _log.failure("job.unreadable", error, job=job.id)
            if held.is_overdue:
                self._mend((project, job), Expired())
            return
        self._on_taken()
        _log.event("job.taken", job=job.id, fence=held.fence, status=held.body["status"])
        self.work_on(work)

    async def end(self, project: str, job: Ref, ending: Ending) -> tuple[Body, Body]:
        """End a job wherever it stands; return it as it was and as it is now.

        Raises:
            JobEnded: it has ended before.
            ObjectNotFound: there is no such job.
            StateUnavailable: Redis cannot be reached.
        """
        while True:
            try:
                held = await self.take(project, job, is_forced=True)
                await self._stop((project, job))
                before = held.body
                await self._end(held, ending, is_patient=False)
            except LeaseLost:  # taken by another client's request, which is over soon
                continue
            await self._inherit(held)
            return before, held.body

    async def renew(self, key: JobKey) -> None:
        """Extend the lease of a job, or stop working on it if another gateway has it."""
        running = self._running.get(key)
        if running is None:
            return
        try:
            await running.execution.held.renew()
        except (LeaseLost, ObjectNotFound) as error:
            _log.event("job.lost", job=key[1].id, reason=error.message)
            if self._running.get(key) is running:
                await self._stop(key)

    async def close(self) -> None:
        """Stop working on all jobs; other gateways continue them."""
        await end_all([*(running.task for running in self._running.values()), *self._mending])

    async def _run(self, execution: Execution) -> None:
        await execution.run()
        await self._inherit(execution.held)

    async def _inherit(self, ended: HeldJob) -> None:
        """Work on the job that got the thread of one that ended."""
        if ended.heir is None or ended.body["status"] not in ENDS or self._terms.is_leaving:
            return
        if (heir := self._storage.ref(ended.heir)) is not None:
            await self.work_on_due(ended.jobs.project, heir)

    def _ended(self, key: JobKey, running: _Running, task: "asyncio.Task[None]") -> None:
        if self._running.get(key) is running:
            del self._running[key]
            self._feed.publish(key, ())  # readers look for another gateway
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.failure("job.defect", error, job=key[1].id)
            self._mend(key, Failed(InternalError(f"The server had an error while working on this {key[1].kind.noun}.")))

    def _mend(self, key: JobKey, ending: Ending) -> None:
        """Begin to end a job on which nobody can work."""
        mending = asyncio.create_task(self._mended(key, ending))
        self._mending.add(mending)
        mending.add_done_callback(lambda task: self._mending_ended(key, task))

    def _mending_ended(self, key: JobKey, task: "asyncio.Task[None]") -> None:
        self._mending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.failure("job.not_ended", error, job=key[1].id)

    async def _mended(self, key: JobKey, ending: Ending) -> None:
        """End a job on which nobody can work; if that fails too, the next one who takes it tries again."""
        try:
            held = await self.take(*key, is_forced=True)
            await self._end(held, ending)
            await self._inherit(held)
        except (Conflict, ObjectNotFound, StateUnavailable) as failure:
            _log.warning("job.not_ended", job=key[1].id, reason=failure.message)

    async def _end(self, held: HeldJob, ending: Ending, *, is_patient: bool = True) -> None:
        """End a job as it stands; of one whose private state cannot be read, only what its log and object show."""
        try:
            work = self.work(held)
        except InternalError as error:
            _log.failure("job.unreadable", error, job=held.ref.id)
            held.private = None
            work = self.work(held)
        await work.resume()
        await work.end(ending, is_patient=is_patient)

    async def _stop(self, key: JobKey) -> None:
        if (running := self._running.pop(key, None)) is not None:
            await end_all([running.task])
