"""Pytest plugin of all suites: before each test the store holds what the test names, and outcomes are noted.

It runs in the suite's virtual environment, beside unmodified tests, and needs nothing of Tandem: the process that
started it seeds the store when asked over a socket. Variables: TANDEM_SEED_SOCKET (empty: there is nothing to seed),
TANDEM_COMPAT_EXPECTED (the list of expected failures), TANDEM_COMPAT_RESULTS (where to write one JSON line for each
test).
"""

import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

SEED_TIMEOUT_S = 30.0
DONE = b"done\n"


@dataclass(frozen=True)
class Expected:
    """An expected failure."""

    pattern: str
    reason: str

    def fits(self, test_id: str) -> bool:
        parts = [re.escape(part) for part in self.pattern.split("*")]
        return re.fullmatch(".*".join(parts), test_id) is not None


def expected_failures(path: Path) -> list[Expected]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.partition(" = ") for line in lines if line and not line.startswith("#")]
    for pattern, _, reason in pairs:
        if not reason.strip():
            raise ValueError(f"{path}: {pattern}: a reason is missing (PATTERN = REASON)")
    return [Expected(pattern.strip(), reason.strip()) for pattern, _, reason in pairs]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    expected = expected_failures(Path(os.environ["TANDEM_COMPAT_EXPECTED"]))
    for item in items:
        for each in expected:
            if each.fits(item.nodeid):
                item.add_marker(pytest.mark.xfail(reason=each.reason, strict=False))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.environ["TANDEM_SEED_SOCKET"]:
        seed(item.nodeid)


def seed(test_id: str) -> None:
    """Have the store emptied and filled with what a test names."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SEED_TIMEOUT_S)
        connection.connect(os.environ["TANDEM_SEED_SOCKET"])
        connection.sendall(test_id.encode() + b"\n")
        answer = connection.makefile("rb").readline()
    if answer != DONE:
        raise RuntimeError(f"the store was not seeded: {answer.decode() or 'no answer'}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcome = _outcome(report)
    if outcome is not None:
        with Path(os.environ["TANDEM_COMPAT_RESULTS"]).open("a", encoding="utf-8") as results:
            results.write(json.dumps({"test": report.nodeid, "outcome": outcome}) + "\n")


def _outcome(report: pytest.TestReport) -> str | None:
    """Return what a phase of a test decides, if anything; a later failure replaces it."""
    if report.failed:
        return "failed"
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.skipped:
        return "skipped"
    return "passed" if report.when == "call" else None
