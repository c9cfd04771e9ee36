"""``tandem import FILE --project P``: objects from JSON lines into a project."""

import asyncio
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from services.cli.failures import EXIT_FAILED
from services.cli.settings import ImportSettings
from services.cli.state import find_redis_url
from services.cli.storage import STANDARD, files_folder_of, stored_files
from services.cli.table import table
from services.command_line import split_words
from services.config import load
from services.errors import ConfigurationError
from services.gateway.keys import check_project
from services.gateway.moving.destination import Destination
from services.gateway.moving.lines import lines_of
from services.gateway.moving.restoring import RESTORERS, Importer, Restored
from services.gateway.store.quota import Quota
from services.telemetry.clock import Clock, SystemClock

USAGE = "tandem import FILE|- [--project NAME]"
PROGRESS_LINES = 1000
"""How often the progress is told."""


def main(argv: Sequence[str]) -> int:
    """Read the lines; what became of them goes to standard error. The status is 0 if all of them are in the project."""
    words, options = split_words(argv)
    settings = load(ImportSettings, options, prog="tandem import").settings
    if len(words) != 1:
        raise ConfigurationError(f"expected {USAGE}")
    redis_url = find_redis_url(settings.data_dir, settings.redis_url)
    restored = asyncio.run(restore(settings, Path(words[0]).expanduser(), redis_url, SystemClock()))
    return EXIT_FAILED if restored.num_failed or restored.is_cut else 0


async def restore(settings: ImportSettings, path: Path, redis_url: str, clock: Clock) -> Restored:
    """Import all lines of a file and return what became of them; it is told also if that ends early.

    Raises:
        ConfigurationError: the file cannot be read.
        InvalidRequest: not a project name, or a line cannot be imported.
        QuotaExceeded: the project has no room for more.
        StateUnavailable: Redis cannot be reached.
    """
    check_project(settings.project)
    quota = Quota(settings.max_project_objects, settings.max_project_file_bytes)
    with _reading(path) as source:
        async with stored_files(redis_url, clock, settings.timeout_s, quota) as storage:
            await storage.register(settings.project)
            folder = files_folder_of(path, settings.files_folder)
            into = Destination(storage.of(settings.project), folder, int(clock.wall()), settings.response_retention_s)
            importer = Importer(
                into,
                keeps_others=settings.on_conflict == "skip",
                on_failure=_say if settings.keep_going else None,
                on_line=_tell_progress,
            )
            try:
                return await importer.read(lines_of(source))
            finally:
                _say(summary(importer.restored))


def summary(restored: Restored) -> str:
    """Return what became of the lines, and how to go on if not all are imported, for people."""
    counters = (restored.made, restored.present, restored.kept)
    rows = [
        (kind, *(str(counter[kind]) for counter in counters))
        for kind in RESTORERS
        if any(counter[kind] for counter in counters)
    ]
    told = [table(("KIND", "NEW", "THERE ALREADY", "KEPT ANOTHER"), rows)] if rows else ["no objects"]
    if restored.num_older:
        told.append(
            f"{restored.num_older} messages are older than those before them in their threads: lists of OpenAI's API "
            "begin with the newest unless they are asked for with order=asc"
        )
    if restored.num_failed:
        told.append(f"{restored.num_failed} lines failed: mend them and import the file again")
    if restored.is_cut:
        told.append("the export has no end: it was cut, so objects are missing; export again")
    if not restored.is_over:
        told.append(
            f"ended before all was read, line {restored.last_line} was the last one that was dealt with: import the "
            "file again to go on; what is there already is passed over"
        )
    return "\n".join(told)


@contextmanager
def _reading(path: Path) -> Generator[BinaryIO, None, None]:
    """Hand out what is read from.

    Raises:
        ConfigurationError: it, or a file that belongs to it, cannot be read.
    """
    if path == STANDARD:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as source:
            yield source
    except OSError as error:
        raise ConfigurationError(f"what is to be imported cannot be read: {error}") from error


def _tell_progress(restored: Restored) -> None:
    if restored.num_objects and restored.num_objects % PROGRESS_LINES == 0:
        _say(f"line {restored.last_line}: {restored.made.total()} new, {restored.present.total()} there already")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
