"""Makes runs, cancels them and lets them go on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.errors import JobEnded, LeaseLost, ObjectRefused
from services.gateway.jobs.events import Body, Event
from services.gateway.jobs.execution import Cancelled
from services.gateway.jobs.held import HeldJob
from services.gateway.jobs.operations import ClaimThread
from services.gateway.jobs.service import Jobs, NewJob
from services.gateway.runs import lifecycle
from services.gateway.runs.events import run_event
from services.gateway.runs.job import Job
from services.gateway.runs.work import RunWork
from services.gateway.search.attachments import Attachments
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import THREAD, Ref
from services.gateway.store.object_store import ObjectStore


@dataclass(frozen=True)
class NewRun:
    """A run to be made."""

    ref: Ref
    body: Body
    messages: Sequence[Create] = ()
    """Messages that it adds to its thread."""
    thread: Sequence[Create] = ()
    """The thread and its messages, if they are made together with the run."""
    stores: Sequence[Operation] = ()
    """What makes the vector stores of such a thread."""
    may_wait: bool = False
    """Whether it waits for its turn if another job has the thread."""

    def job(self, attaching: Sequence[Operation] = ()) -> NewJob:
        """Return the run as a job; what a run that waits adds to its thread is added when its turn comes.

        ``attaching`` is what brings the files of its messages into the thread's vector store.
        """
        made = [Event("thread.created", create.body) for create in self.thread[:1]]
        thread = THREAD.ref(self.body["thread_id"])
        state = Job(waiting_messages=[create.body for create in self.messages] if self.may_wait else ())
        return NewJob(
            self.ref,
            self.body,
            state.to_bytes(),
            [*made, Event("thread.run.created", self.body), run_event(self.body)],
            1000 * int(self.body["expires_at"]),
            parent=thread,
            claim=ClaimThread(thread, self.ref, self.may_wait),
            before=[*self.stores, *self.thread],
            after=() if self.may_wait else [*self.messages, *attaching],
        )


class Runs:
    """What clients do with runs."""

    def __init__(
        self, jobs: Jobs, objects: ObjectStore, attachments: Attachments, work: Callable[[HeldJob], RunWork]
    ) -> None:
        self._jobs = jobs
        self._objects = objects
        self._attachments = attachments
        self._work = work

    async def create(self, project: str, new: NewRun) -> None:
        """Write a run down and begin to work on it.

        Raises:
            ObjectNotFound: the thread, or a file of a message, does not exist.
            ObjectRefused: another job has the thread, and the new run shall not wait.
            StateUnavailable: Redis cannot be reached.
        """
        thread, bodies = THREAD.ref(new.body["thread_id"]), [each.body for each in new.messages]
        if new.may_wait:
            await self._attachments.check(project, bodies)
            await self._jobs.create(project, new.job())
            return

        async def make(attaching: Sequence[Operation]) -> None:
            await self._jobs.create(project, new.job(attaching))

        await self._attachments.bring(project, thread, bodies, make)

    async def cancel(self, project: str, run: Ref) -> Body:
        """End a run wherever it stands; return it as it is being cancelled.

        Raises:
            ObjectRefused: it has ended.
            ObjectNotFound: there is no such run.
            StateUnavailable: Redis cannot be reached.
        """
        try:
            before, after = await self._jobs.end(project, run, Cancelled())
        except JobEnded as error:
            record = await self._objects.of(project).get(run)
            raise ObjectRefused(f"Cannot cancel run with status '{record.body['status']}'.") from error
        return {**lifecycle.cancelling(before), "metadata": after["metadata"]}

    async def submit(self, project: str, run: Ref, outputs: Sequence[tuple[str, str]]) -> tuple[Body, int]:
        """Give a run the outputs of its calls, by call id; return it and the last event before it goes on.

        Raises:
            ObjectRefused: it waits for none, or for those of other calls.
            ObjectNotFound: there is no such run.
            StateUnavailable: Redis cannot be reached.
        """
        _check_outputs((await self._objects.of(project).get(run)).body, outputs)
        try:
            return await self._go_on(project, run, outputs)
        except JobEnded as error:
            record = await self._objects.of(project).get(run)
            raise _takes_no_outputs(record.body["status"]) from error
        except LeaseLost as error:  # somebody else submits, too, and was faster
            raise _takes_no_outputs("queued") from error

    async def _go_on(self, project: str, run: Ref, outputs: Sequence[tuple[str, str]]) -> tuple[Body, int]:
        held = await self._jobs.take(project, run, is_forced=True)
        work = self._work(held)
        if held.body["status"] != "requires_action":  # somebody else submitted first, and we have the run now
            self._jobs.work_on(work)
            raise _takes_no_outputs(held.body["status"])
        position = held.last_event
        await work.resume()
        await work.go_on(outputs)
        body = held.body
        self._jobs.work_on(self._work(held))
        return body, position


def _check_outputs(run: Body, outputs: Sequence[tuple[str, str]]) -> None:
    if run["status"] != "requires_action":
        raise _takes_no_outputs(run["status"])
    calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    expected, given = [call["id"] for call in calls], [call_id for call_id, _ in outputs]
    if sorted(expected) != sorted(given):
        raise ObjectRefused(f"Expected tool outputs for call_ids {_quoted(expected)}, got {_quoted(given)}")


def _takes_no_outputs(status: str) -> ObjectRefused:
    return ObjectRefused(f'Runs in status "{status}" do not accept tool outputs.')


def _quoted(ids: Sequence[str]) -> str:
    return "[" + ",".join(f"'{call_id}'" for call_id in ids) + "]"
