"""Events of a run; all but deltas carry a whole object, which is its new state."""

from services.gateway.jobs.events import PAUSES, Body, Event, LogEntry

DONE = b"event: done\ndata: [DONE]\n\n"


def run_event(run: Body) -> Event:
    """Return the event that tells the new status of a run."""
    return Event(f"thread.run.{run['status']}", run, pauses_job=run["status"] in PAUSES)


def step_event(step: Body) -> Event:
    """Return the event that tells the new status of a step."""
    return Event(f"thread.run.step.{step['status']}", step)


def message_event(message: Body) -> Event:
    """Return the event that tells the new status of a message."""
    return Event(f"thread.message.{message['status']}", message)


def sse(entry: LogEntry) -> bytes:
    """Return an entry as a server-sent event; its id is where a client can begin again."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.number, entry.name.encode(), entry.data)
