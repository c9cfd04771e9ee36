"""``make compat``: tests that others wrote of the API, against real gateways (``suites.py``)."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.compat.cluster import CompatCluster
from tests.compat.gw_seed import expected_failures
from tests.compat.report import read_report
from tests.compat.suite import Suite
from tests.compat.suites import HERE, SUITES

RUN_TIMEOUT_S = 900.0
"""Longest run of one suite."""


async def run(suite: Suite, arguments: Sequence[str]) -> int:
    """Run a suite, or the files and options that ``arguments`` name; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="tandem-compat-") as name:
        folder = Path(name)
        async with suite.cluster(folder) as cluster:
            status = await _pytest(suite, cluster, folder / "results.jsonl", arguments)
            tail = cluster.log.read_text(errors="replace")[-4000:]
        expected = () if arguments else expected_failures(suite.expected)  # a part need not have all of them
        report = read_report(folder / "results.jsonl", expected)
    print(f"== {suite.name}\n{report.text()}", flush=True)
    if status not in (0, 1):  # neither passed nor failed: pytest itself could not go on
        print(tail)
    return 1 if report.failed or not report.outcomes else status


async def _pytest(suite: Suite, cluster: CompatCluster, results: Path, arguments: Sequence[str]) -> int:
    folder, python = await asyncio.to_thread(suite.prepared)
    options = ["-p", "no:cacheprovider", "-p", "gw_seed", "-q", "-o", "addopts=", "--tb=short", *suite.options]
    if folder == HERE:
        options += ["--rootdir", str(HERE), "-c", os.devnull]  # not under the project's own settings
    options += [*(() if any(map(_is_file, arguments)) else suite.files), *arguments]
    environment = {
        **os.environ,
        "TEST_API_BASE_URL": cluster.base_url,
        "PYTHONPATH": str(HERE),
        "TANDEM_COMPAT_MODEL": cluster.model,
        "TANDEM_SEED_SOCKET": str(cluster.seed_socket or ""),
        "TANDEM_COMPAT_EXPECTED": str(suite.expected),
        "TANDEM_COMPAT_RESULTS": str(results),
    }
    process = await asyncio.create_subprocess_exec(str(python), "-m", "pytest", *options, cwd=folder, env=environment)
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _is_file(argument: str) -> bool:
    return argument.partition("::")[0].endswith(".py") or argument.startswith("tests/")


def main(arguments: Sequence[str]) -> int:
    """Run the suite that the first argument names, with the others, or all suites; return the exit status."""
    names = {suite.name: suite for suite in SUITES}
    if not arguments:
        return max([asyncio.run(run(suite, ())) for suite in SUITES])
    if arguments[0] not in names:
        print(f"Name a suite first: {', '.join(names)}.", file=sys.stderr)
        return 2
    return asyncio.run(run(names[arguments[0]], arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
