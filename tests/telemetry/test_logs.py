import logging

import pytest

from services.telemetry.logs import _TextFormatter


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("req_1", "name=req_1"),
        ("a\n12:00:00.000 E decode everything.failed", r"name='a\n12:00:00.000 E decode everything.failed'"),
        ("\x1b[2J", r"name='\x1b[2J'"),
    ],
)
def test_what_a_peer_named_stays_on_its_line(value: str, shown: str) -> None:
    record = logging.makeLogRecord({"msg": "event", "fields": {"name": value}})
    line = _TextFormatter("test").format(record)
    assert line.endswith(shown)
    assert line.isprintable()
