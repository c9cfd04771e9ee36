"""A change of a run: each event that shows an object is its new state, so log and objects cannot differ."""

from collections.abc import Mapping, Sequence

from services.gateway.jobs.events import ENDS, Body, Event
from services.gateway.jobs.held import HeldJob, Writing
from services.gateway.runs.documents import RUN_LABEL
from services.gateway.runs.job import Job
from services.gateway.store.changes import Create, Operation, Update
from services.gateway.store.kinds import MESSAGE, RUN, STEP, THREAD, Ref

_KINDS = {"thread.message": MESSAGE, "thread.run.step": STEP, "thread.run": RUN}
"""Objects that runs change, by how they are shown."""


def run_writing(
    held: HeldJob,
    events: Sequence[Event],
    job: Job | None = None,
    *,
    bodies: Sequence[tuple[Ref, Body]] = (),
    private: Mapping[str, bytes] | None = None,
    further: Sequence[Operation] = (),
) -> Writing:
    """Return the change that events of a run make.

    Args:
        held: the run.
        events: what happened.
        job: its new private state; one that ends needs none, since nobody goes on with it.
        bodies: new states of objects that no event shows.
        private: new private bytes of objects, by id.
        further: what else belongs to the change.
    """
    states = _states(events) | dict(bodies)
    run = states.pop(held.ref, None)
    if run is not None and run["status"] in ENDS:
        job = Job()
    created = {event.data["id"] for event in events if event.name.endswith(".created")}
    kept = private or {}
    return Writing(
        events,
        run,
        job.to_bytes() if job is not None else None,
        [Update(ref, body, private=kept.get(ref.id)) for ref, body in states.items() if ref.id not in created],
        [
            *(_creation(held, ref, body, kept.get(ref.id)) for ref, body in states.items() if ref.id in created),
            *further,
        ],
    )


def new_message_creations(thread: Ref, bodies: Sequence[Body]) -> list[Create]:
    """Return the creation of messages in a thread."""
    return [Create(MESSAGE.ref(body["id"]), body, thread) for body in bodies]


def _creation(held: HeldJob, ref: Ref, body: Body, private: bytes | None) -> Create:
    if ref.kind is MESSAGE:
        return Create(ref, body, THREAD.ref(body["thread_id"]), {RUN_LABEL: held.ref.id}, private)
    return Create(ref, body, held.ref, private=private)


def _states(events: Sequence[Event]) -> dict[Ref, Body]:
    """Return the last state of each object that events show, but not of the thread."""
    return {
        kind.ref(event.data["id"]): event.data
        for event in events
        if not event.is_delta and (kind := _KINDS.get(event.data["object"])) is not None
    }
