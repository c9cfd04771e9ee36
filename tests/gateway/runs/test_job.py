"""What gateways keep with jobs and objects is read by those of other versions, too."""

from dataclasses import asdict

import orjson

from services.gateway.files.storage import StoredBytes
from services.gateway.responses.state import ResponseState
from services.gateway.runs.binding import Binding
from services.gateway.runs.job import Job, Used
from services.gateway.runs.search_calls import Found, StepNotes
from services.gateway.runs.turns import TurnPlan
from services.gateway.search.stores import StoredFileSource

BINDING = Binding("d", None, (1, 2), (3,), 4, "x", "msg_1", 5, ({"role": "tool"},), {"m": "f"})
FOUND = Found("{}", {"results": []}, ("text",), "out", {"m": "f"})
JOB = Job(TurnPlan("d", (1,), {}), 2, Used(1, 2, 3), called=BINDING, waiting_messages=[{"content": []}])
NEW = {"of_a_newer_version": [1]}


def extended_job(job: Job) -> bytes:
    values = orjson.loads(job.to_bytes())
    for name in ("plan", "used", "called"):
        values[name] |= NEW
    return orjson.dumps({**values, **NEW})


def test_what_a_newer_version_keeps_with_a_run_is_left_out() -> None:
    assert Job.from_bytes(extended_job(JOB)) == JOB
    assert Binding.from_bytes(orjson.dumps({**asdict(BINDING), **NEW})) == BINDING
    notes = orjson.dumps({"searches": {"call_1": {**asdict(FOUND), **NEW}}, **NEW})
    assert StepNotes.from_bytes(notes) == StepNotes({"call_1": FOUND})


def test_what_a_newer_version_keeps_with_a_response_is_left_out() -> None:
    kept = {
        "job": orjson.loads(extended_job(JOB)),
        "binding": {**asdict(BINDING), **NEW},
        "found": {"fs_1": {**asdict(FOUND), **NEW}},
        **NEW,
    }

    assert ResponseState.from_bytes(orjson.dumps(kept)) == ResponseState(JOB, BINDING, {"fs_1": FOUND})


def test_what_a_newer_version_keeps_with_a_file_is_left_out() -> None:
    source, stored = StoredFileSource("a.txt", "vsfb_1"), StoredBytes(5, 1)

    assert StoredFileSource.from_bytes(orjson.dumps({**orjson.loads(source.to_bytes()), **NEW})) == source
    assert StoredBytes.from_bytes(orjson.dumps({**orjson.loads(stored.to_bytes()), **NEW})) == stored
