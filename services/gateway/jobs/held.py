"""A job that this gateway holds: its present state, and the only way to change it."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from services.errors import Conflict, JobEnded, LeaseLost, ObjectNotFound, StateUnavailable
from services.gateway.jobs.events import ENDS, PAUSES, Body, Event, LogEntry, numbered
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.operations import QUEUE, WriteJob
from services.gateway.jobs.storage import ProjectJobs
from services.gateway.store.changes import Create, Operation, Update
from services.gateway.store.kinds import Ref
from services.gateway.store.leases import RenewLease
from services.gateway.store.object_store import Done
from services.gateway.store.records import Record
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_PAUSE_S = 0.5
_MAX_CONFLICTS = 20

_log = get_logger(__name__)


@dataclass
class LeaseTerms:
    """How long this gateway's leases are; the same object for all of its jobs."""

    clock: Clock
    lease_s: float
    retention_s: float
    """How long events are kept after the last one of a job."""
    is_leaving: bool = False
    """Whether other gateways may take the jobs of this one at any time."""

    @property
    def now_ms(self) -> int:
        """The present time, in milliseconds since the Unix epoch."""
        return round(1e3 * self.clock.wall())

    def due_ms(self, status: str, now_ms: int, expires_ms: int) -> int | None:
        """Return when others may take a job of this gateway that has a status; None once it has ended."""
        if status in ENDS:
            return None
        if status in PAUSES:
            return expires_ms
        return now_ms if self.is_leaving else self.until_ms(now_ms)

    def until_ms(self, now_ms: int) -> int:
        """Return when a lease that begins now ends."""
        return now_ms + round(1e3 * self.lease_s)


@dataclass(frozen=True)
class Writing:
    """One change of a job."""

    events: Sequence[Event] = ()
    body: Body | None = None
    """The new state of the job, if it changes."""
    private: bytes | None = None
    """Its new private bytes."""
    updates: Sequence[Update] = ()
    """New states of other objects; ``commit`` names their versions."""
    further: Sequence[Operation] = ()
    """What else belongs to the change."""

    def with_metadata(self, job: Ref, ref: Ref, metadata: object) -> "Writing":
        """Return the change with the metadata that a client gave one object meanwhile."""
        body = self.body
        if body is not None and ref == job:
            body = {**body, "metadata": metadata}
        return replace(
            self,
            events=[event.with_metadata(ref.id, metadata) for event in self.events],
            body=body,
            updates=[
                replace(update, body={**update.body, "metadata": metadata}) if update.ref == ref else update
                for update in self.updates
            ],
        )


@dataclass
class HeldJob:
    """A job with its fencing number; ``commit`` raises LeaseLost once another gateway has taken it."""

    jobs: ProjectJobs
    terms: LeaseTerms
    feed: Feed
    ref: Ref
    body: Body
    private: bytes | None
    """What its kind keeps with it; None if that cannot be read, and the job can only be ended."""
    fence: int
    last_event: int
    expires_ms: int
    versions: dict[Ref, int]
    """Of the job, and of objects that it has open."""
    heir: str | None = None
    """The key of the job that got the thread when this one ended."""
    renewed_ms: int = 0
    _metadata: dict[Ref, object] = field(default_factory=dict)
    """What clients made of the metadata of objects since this gateway read them."""

    def __post_init__(self) -> None:
        self.renewed_ms = self.terms.now_ms

    @property
    def now(self) -> int:
        """Seconds since the Unix epoch."""
        return int(self.terms.clock.wall())

    @property
    def is_overdue(self) -> bool:
        """Whether the time of the job is over."""
        return self.terms.now_ms >= self.expires_ms

    async def commit(self, writing: Writing, *, is_patient: bool = True) -> None:
        """Write events and all that they change at once, then tell this gateway's readers.

        While Redis is away, a patient call goes on trying until the job expires.

        Raises:
            LeaseLost: another gateway took the job; nothing was written.
            ObjectNotFound: the job was deleted.
            StateUnavailable: Redis cannot be reached.
        """
        for ref, metadata in self._metadata.items():
            writing = writing.with_metadata(self.ref, ref, metadata)
        for _ in range(_MAX_CONFLICTS):
            entries = numbered(writing.events, self.last_event + 1)
            operations = self._operations(writing, entries)
            token = secrets.token_hex(12)
            try:
                dones = await self._apply(operations, token, is_patient=is_patient)
            except (LeaseLost, JobEnded):
                raise
            except Conflict as error:
                conflict: Conflict = error
                refreshed = await self._refreshed(writing, entries)
                if refreshed is None:
                    return
                writing = refreshed
            else:
                self._note(writing, entries, operations, dones)
                return
        raise conflict

    async def entries(self, after: int) -> AsyncGenerator[LogEntry, None]:
        """Read the log after number ``after`` as it was when the job was taken: who took it since may write on."""
        while after < self.last_event and (entries := await self.jobs.read(self.ref, after)):
            for entry in entries:
                if entry.number <= self.last_event:
                    yield entry
            after = entries[-1].number

    def learn(self, record: Record) -> None:
        """Take the version and the metadata of an open object that was read."""
        self.versions[record.ref] = record.version
        self._metadata[record.ref] = record.body["metadata"]

    async def renew(self) -> None:
        """Extend the lease; when leaving, offer the job to other gateways instead.

        Raises:
            LeaseLost: another gateway took the job.
            ObjectNotFound: the job was deleted.
            StateUnavailable: Redis cannot be reached.
        """
        now_ms = self.terms.now_ms
        due_ms = self.terms.due_ms(self.body["status"], now_ms, self.expires_ms)
        if due_ms is not None:
            await self.jobs.objects.apply([RenewLease(QUEUE, self.ref, self.fence, due_ms)])
        self.renewed_ms = now_ms

    def _operations(self, writing: Writing, entries: Sequence[LogEntry]) -> list[Operation]:
        now_ms = self.terms.now_ms
        write = WriteJob(
            self.ref,
            self.fence,
            now_ms,
            self.terms.due_ms((writing.body or self.body)["status"], now_ms, self.expires_ms),
            self.expires_ms,
            entries,
            body=writing.body,
            version=self.versions[self.ref],
            private=writing.private,
            retention_s=self.terms.retention_s,
        )
        updates = (replace(update, version=self.versions.get(update.ref)) for update in writing.updates)
        return [write, *updates, *writing.further]

    async def _apply(self, operations: Sequence[Operation], token: str, *, is_patient: bool) -> Sequence[Done]:
        while True:
            try:
                return await self.jobs.objects.apply(operations, token=token, is_bounded=False)
            except StateUnavailable as error:
                if not is_patient or self.is_overdue:
                    raise
                _log.warning("job.waits_for_state", job=self.ref.id, reason=error.message)
                await asyncio.sleep(_PAUSE_S)

    def _note(
        self,
        writing: Writing,
        entries: Sequence[LogEntry],
        operations: Sequence[Operation],
        dones: Sequence[Done],
    ) -> None:
        self._take(writing)
        self.heir = dones[0].details.get("heir")
        for operation, done in zip(operations, dones, strict=True):
            if done.version is not None:
                self.versions[operation.ref] = done.version
        self._told(entries)

    def _take(self, writing: Writing) -> None:
        self.body = self.body if writing.body is None else writing.body
        self.private = self.private if writing.private is None else writing.private

    def _told(self, entries: Sequence[LogEntry]) -> None:
        self.renewed_ms = self.terms.now_ms
        if entries:
            self.last_event = entries[-1].number
            self.feed.publish((self.jobs.project, self.ref), entries)

    async def _is_made(self, writing: Writing, entries: Sequence[LogEntry]) -> bool:
        """Return whether a change is made: the log has its events or, if it has none, what it creates is there."""
        if entries:
            state = await self.jobs.state(self.ref)
            return state is not None and state.last_event >= entries[-1].number
        created = next((operation.ref for operation in writing.further if isinstance(operation, Create)), None)
        if created is None:
            return False
        try:
            await self.jobs.objects.get(created)
        except ObjectNotFound:
            return False
        return True

    async def _refreshed(self, writing: Writing, entries: Sequence[LogEntry]) -> Writing | None:
        """Return the change over what others changed meanwhile; None if it was made already and its answer lost."""
        bodies = {update.ref: update.body for update in writing.updates} | {self.ref: writing.body or self.body}
        records = [await self.jobs.objects.get(ref) for ref in bodies if ref in self.versions]
        self.versions |= {record.ref: record.version for record in records}
        if await self._is_made(writing, entries):
            self._take(replace(writing, body=next(record.body for record in records if record.ref == self.ref)))
            self._told(entries)
            return None
        for record in records:
            if record.body["metadata"] != bodies[record.ref]["metadata"]:
                self._metadata[record.ref] = metadata = record.body["metadata"]
                writing = writing.with_metadata(self.ref, record.ref, metadata)
                if record.ref == self.ref:
                    self.body = {**self.body, "metadata": metadata}
        return writing
