"""``tandem export --project P --output FILE``: the objects of a project as JSON lines."""

import asyncio
import importlib.metadata
import sys
from collections.abc import Generator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import BinaryIO

from services.cli.settings import ExportSettings
from services.cli.state import find_redis_url
from services.cli.storage import STANDARD, files_folder_of, stored_files
from services.cli.table import table
from services.config import load
from services.errors import ConfigurationError
from services.gateway.keys import check_project
from services.gateway.moving.export import Exporter
from services.telemetry.clock import Clock, SystemClock


def main(argv: Sequence[str]) -> int:
    """Write the lines; how many of what there were goes to standard error."""
    settings = load(ExportSettings, argv, prog="tandem export").settings
    exporter = asyncio.run(export(settings, find_redis_url(settings.data_dir, settings.redis_url), SystemClock()))
    print(summary(exporter), file=sys.stderr)
    return 0


async def export(settings: ExportSettings, redis_url: str, clock: Clock) -> Exporter:
    """Write all lines of a project and return who wrote them.

    Raises:
        ConfigurationError: a file or folder cannot be written, or there is none for the bytes of files.
        InvalidRequest: not a project name.
        StateUnavailable: Redis cannot be reached.
    """
    check_project(settings.project)
    folder = files_folder_of(settings.output, settings.files_folder)
    tandem = importlib.metadata.version("tandem-serve")
    try:
        async with stored_files(redis_url, clock, settings.timeout_s) as storage:
            exporter = Exporter(storage.of(settings.project), folder)
            lines = exporter.lines(created_at=int(clock.wall()), tandem=tandem)
            with _writing(settings.output) as target:
                async with aclosing(lines):
                    async for line in lines:
                        target.write(line.encoded())
    except OSError as error:
        raise ConfigurationError(f"the export cannot be written: {error}") from error
    return exporter


def summary(exporter: Exporter) -> str:
    """Return how many objects were exported, and how many were not, for people."""
    rows = [(kind, str(number)) for kind, number in exporter.exported.items()]
    told = table(("KIND", "EXPORTED"), rows) if rows else "the project has no objects"
    left_out = [f"left out, as it has not ended: {number} {kind}" for kind, number in exporter.left_out.items()]
    return "\n".join([told, *left_out])


@contextmanager
def _writing(output: Path) -> Generator[BinaryIO, None, None]:
    """Hand out what is written to; a file appears under its name when it is whole."""
    if output == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    scratch = output.with_name(f"{output.name}.part")
    scratch.touch(mode=0o600)
    try:
        with scratch.open("wb") as target:
            yield target
        scratch.replace(output)
    finally:
        scratch.unlink(missing_ok=True)
