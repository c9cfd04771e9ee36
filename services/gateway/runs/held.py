"""A run that this gateway holds: its present state, and the only way to change it."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.errors import Conflict, LeaseLost, RunEnded, StateUnavailable
from services.gateway.runs.documents import RUN_LABEL
from services.gateway.runs.events import LogEntry, RunEvent, numbered
from services.gateway.runs.feed import Feed
from services.gateway.runs.job import Job
from services.gateway.runs.lifecycle import ENDS, Body
from services.gateway.runs.operations import Lease, WriteRun
from services.gateway.runs.storage import ProjectRuns
from services.gateway.store.changes import Create, Operation, Update
from services.gateway.store.kinds import MESSAGE, RUN, STEP, THREAD, Ref
from services.gateway.store.object_store import Done
from services.gateway.store.records import Record
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_PAUSE_S = 0.5
_MAX_CONFLICTS = 20

_log = get_logger(__name__)


@dataclass
class LeaseTerms:
    """How long this gateway's leases are; the same object for all of its runs."""

    owner: str
    clock: Clock
    lease_s: float
    retention_s: float
    """How long events are kept after the last one of a run."""
    is_leaving: bool = False
    """Whether other gateways may take the runs of this one at any time."""

    @property
    def now_ms(self) -> int:
        """The present time, in milliseconds since the Unix epoch."""
        return round(1e3 * self.clock.wall())

    def lease(self, run: Body, expires_ms: int) -> Lease:
        """Return the lease of a run that this gateway writes."""
        now_ms = self.now_ms
        if run["status"] in ENDS:
            return Lease("", now_ms, None, expires_ms)
        if run["status"] == "requires_action":
            return Lease("", now_ms, expires_ms, expires_ms)
        return Lease(self.owner, now_ms, now_ms if self.is_leaving else self.until_ms(now_ms), expires_ms)

    def until_ms(self, now_ms: int) -> int:
        """Return when a lease that begins now ends."""
        return now_ms + round(1e3 * self.lease_s)


@dataclass(frozen=True)
class Writing:
    """One change of a run: its events say what becomes of the objects that they show."""

    events: Sequence[RunEvent]
    job: Job | None = None
    """The new private state."""
    bodies: Sequence[tuple[Ref, Body]] = ()
    """New states of objects that no event shows."""
    private: Mapping[str, bytes] = field(default_factory=dict)
    """New private bytes of objects, by id."""
    creations: Sequence[Create] = ()
    """Further new objects."""

    def with_metadata(self, object_id: str, metadata: object) -> "Writing":
        """Return the change with the metadata that a client gave one object meanwhile."""
        events = [event.with_metadata(object_id, metadata) for event in self.events]
        bodies = [(ref, {**body, "metadata": metadata} if ref.id == object_id else body) for ref, body in self.bodies]
        return replace(self, events=events, bodies=bodies)

    def states(self) -> dict[Ref, Body]:
        """Return the new state of each object but the thread."""
        states: dict[Ref, Body] = {}
        for event in self.events:
            if not event.is_delta and (ref := _ref_of(event.data)) is not None:
                states[ref] = event.data
        return states | dict(self.bodies)

    def creates(self, ref: Ref) -> bool:
        """Return whether the object begins with this change."""
        return any(event.name.endswith(".created") and event.data["id"] == ref.id for event in self.events)


@dataclass
class HeldRun:
    """A run with its fencing number; ``commit`` raises LeaseLost once another gateway has taken it."""

    runs: ProjectRuns
    terms: LeaseTerms
    feed: Feed
    ref: Ref
    body: Body
    job: Job
    fence: int
    last_event: int
    versions: dict[Ref, int]
    """Of the run, and of the step and the message that are open."""
    expires_ms: int = field(init=False)
    heir: str | None = None
    """The run that got the thread when this one ended."""
    renewed_ms: int = 0
    _metadata: dict[str, object] = field(default_factory=dict)
    """What clients made of the metadata of objects, by id, since this gateway read them."""

    def __post_init__(self) -> None:
        self.expires_ms = 1000 * (self.body["expires_at"] or 0)
        self.renewed_ms = self.terms.now_ms

    @property
    def thread(self) -> Ref:
        """The thread of the run."""
        return THREAD.ref(self.body["thread_id"])

    @property
    def now(self) -> int:
        """Seconds since the Unix epoch."""
        return int(self.terms.clock.wall())

    @property
    def is_overdue(self) -> bool:
        """Whether the time of the run is over."""
        return self.terms.now_ms >= self.expires_ms

    async def commit(self, writing: Writing, *, is_patient: bool = True) -> None:
        """Write events and all that they change at once, then tell this gateway's readers.

        While Redis is away, a patient call goes on trying until the run expires.

        Raises:
            LeaseLost: another gateway took the run; nothing was written.
            ObjectNotFound: the run was deleted with its thread.
            StateUnavailable: Redis cannot be reached.
        """
        for object_id, metadata in self._metadata.items():
            writing = writing.with_metadata(object_id, metadata)
        for _ in range(_MAX_CONFLICTS):
            entries = numbered(writing.events, self.last_event + 1)
            token = secrets.token_hex(12)
            try:
                dones = await self._apply(self._operations(writing, entries), token, is_patient=is_patient)
            except (LeaseLost, RunEnded):
                raise
            except Conflict as error:
                conflict: Conflict = error
                refreshed = await self._refreshed(writing, entries)
                if refreshed is None:
                    return
                writing = refreshed
            else:
                self._note(writing, entries, dones)
                return
        raise conflict

    def new_messages(self, bodies: Sequence[Body]) -> list[Create]:
        """Return the creation of messages in the run's thread."""
        return [Create(MESSAGE.ref(body["id"]), body, self.thread) for body in bodies]

    def learn(self, record: Record) -> None:
        """Take the version and the metadata of an open object that was read."""
        self.versions[record.ref] = record.version
        self._metadata[record.ref.id] = record.body["metadata"]

    async def renew(self) -> None:
        """Extend the lease; when leaving, offer the run to other gateways instead.

        Raises:
            LeaseLost: another gateway took the run.
            ObjectNotFound: the run was deleted with its thread.
            StateUnavailable: Redis cannot be reached.
        """
        lease = self.terms.lease(self.body, self.expires_ms)
        await self.runs.objects.apply([WriteRun(self.ref, self.fence, lease)])
        self.renewed_ms = lease.now_ms

    def _operations(self, writing: Writing, entries: Sequence[LogEntry]) -> list[Operation]:
        states = writing.states()
        run = states.pop(self.ref, None)
        write = WriteRun(
            self.ref,
            self.fence,
            self.terms.lease(run or self.body, self.expires_ms),
            entries,
            body=run,
            version=self.versions[self.ref],
            private=writing.job.to_bytes() if writing.job is not None else None,
            retention_s=self.terms.retention_s,
        )
        return [write, *(self._operation(writing, ref, body) for ref, body in states.items()), *writing.creations]

    def _operation(self, writing: Writing, ref: Ref, body: Body) -> Operation:
        private = writing.private.get(ref.id)
        if not writing.creates(ref):
            return Update(ref, body, self.versions.get(ref), private=private)
        if ref.kind is MESSAGE:
            return Create(ref, body, self.thread, {RUN_LABEL: self.ref.id}, private)
        return Create(ref, body, self.ref, private=private)

    async def _apply(self, operations: Sequence[Operation], token: str, *, is_patient: bool) -> Sequence[Done]:
        while True:
            try:
                return await self.runs.objects.apply(operations, token=token)
            except StateUnavailable as error:
                if not is_patient or self.is_overdue:
                    raise
                _log.warning("run.waits_for_state", run=self.ref.id, reason=error.message)
                await asyncio.sleep(_PAUSE_S)

    def _note(self, writing: Writing, entries: Sequence[LogEntry], dones: Sequence[Done]) -> None:
        states = writing.states()
        self.body, self.job = states.pop(self.ref, self.body), writing.job or self.job
        self.heir = dones[0].details.get("heir")
        for ref, done in zip((self.ref, *states), dones, strict=False):  # further creations are at the end
            if done.version is not None:
                self.versions[ref] = done.version
        self._told(entries)

    def _told(self, entries: Sequence[LogEntry]) -> None:
        self.renewed_ms = self.terms.now_ms
        if entries:
            self.last_event = entries[-1].number
            self.feed.publish((self.runs.project, self.ref), entries)

    async def _refreshed(self, writing: Writing, entries: Sequence[LogEntry]) -> Writing | None:
        """Return the change over what others changed meanwhile; None if it was made already and its answer lost."""
        states = {**writing.states(), self.ref: self.body}
        known = [ref for ref in states if ref is self.ref or ref in self.versions]
        records = [await self.runs.objects.get(ref) for ref in known]
        self.versions |= {record.ref: record.version for record in records}
        state = await self.runs.log_state(self.ref)
        if entries and state is not None and state.last_event >= entries[-1].number:
            run = next(record for record in records if record.ref == self.ref)
            self.body, self.job = run.body, writing.job or self.job
            self._told(entries)
            return None
        for record in records:
            if record.body["metadata"] != states[record.ref]["metadata"]:
                self._metadata[record.ref.id] = metadata = record.body["metadata"]
                writing = writing.with_metadata(record.ref.id, metadata)
                if record.ref == self.ref:
                    self.body = {**self.body, "metadata": metadata}
        return writing


def _ref_of(body: Body) -> Ref | None:
    """Return the object that a body shows, if runs change it."""
    if body["object"] == "thread.message":
        return MESSAGE.ref(body["id"])
    if body["object"] == "thread.run.step":
        return STEP.ref(body["id"])
    return RUN.ref(body["id"]) if body["object"] == "thread.run" else None
