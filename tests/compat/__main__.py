"""``make compat``: the official SDK's own tests, unmodified, against a real gateway process."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.compat.cluster import CompatCluster, compat_cluster
from tests.compat.gw_seed import expected_failures
from tests.compat.report import read_report
from tests.compat.suite import Suite, prepared_suite

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.txt"
RUN_TIMEOUT_S = 540.0
FILES = (
    "tests/api_resources/beta/test_assistants.py",
    "tests/api_resources/beta/test_threads.py",
    "tests/api_resources/beta/threads/test_messages.py",
    "tests/api_resources/beta/threads/test_runs.py",
    "tests/api_resources/beta/threads/runs/test_steps.py",
    "tests/api_resources/test_models.py",
    "tests/api_resources/test_files.py",
    "tests/api_resources/test_uploads.py",
    "tests/api_resources/uploads/test_parts.py",
    "tests/api_resources/test_vector_stores.py",
    "tests/api_resources/vector_stores/test_files.py",
    "tests/api_resources/vector_stores/test_file_batches.py",
    "tests/api_resources/test_embeddings.py",
    "tests/api_resources/test_responses.py",
    "tests/api_resources/responses/test_input_items.py",
    "tests/api_resources/responses/test_input_tokens.py",
    "tests/api_resources/test_conversations.py",
    "tests/api_resources/conversations/test_items.py",
)
"""What is run; an API that is served adds its files here."""


async def run(arguments: Sequence[str]) -> int:
    """Run the suite, or the files and options that ``arguments`` name; return the exit status."""
    suite = prepared_suite()
    with tempfile.TemporaryDirectory(prefix="tandem-compat-") as name:
        folder = Path(name)
        async with compat_cluster(folder) as cluster:
            status = await _pytest(suite, cluster, folder, arguments)
        expected = () if arguments else expected_failures(EXPECTED)  # a part need not have all of them
        report = read_report(folder / "results.jsonl", expected)
        print(report.text())
        if status not in (0, 1):  # neither passed nor failed: pytest itself could not go on
            print((folder / "gateway.log").read_text(errors="replace")[-4000:])
    return 1 if report.failed or not report.outcomes else status


async def _pytest(suite: Suite, cluster: CompatCluster, folder: Path, arguments: Sequence[str]) -> int:
    options = ["-p", "no:cacheprovider", "-p", "gw_seed", "-n", "0", "-q", "-o", "addopts=", "--tb=short"]
    options += ["--timeout", "60", *(() if any(map(_is_file, arguments)) else FILES), *arguments]
    environment = {
        **os.environ,
        "TEST_API_BASE_URL": cluster.base_url,
        "PYTHONPATH": str(HERE),
        "TANDEM_SEED_SOCKET": str(cluster.seed_socket),
        "TANDEM_COMPAT_EXPECTED": str(EXPECTED),
        "TANDEM_COMPAT_RESULTS": str(folder / "results.jsonl"),
    }
    process = await asyncio.create_subprocess_exec(
        str(suite.python), "-m", "pytest", *options, cwd=suite.folder, env=environment
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _is_file(argument: str) -> bool:
    return argument.partition("::")[0].endswith(".py") or argument.startswith("tests/")


if __name__ == "__main__":
    sys.exit(asyncio.run(run(sys.argv[1:])))
