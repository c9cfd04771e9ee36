"""Stored objects and their bytes, for commands that reach them without a gateway."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from services.gateway.files.storage import FileStorage
from services.gateway.redis_state import RedisState
from services.gateway.store.object_store import ObjectStore
from services.gateway.store.quota import Quota
from services.gateway.store.schema import Schema
from services.telemetry.clock import Clock

FILES_SUFFIX = ".files"
STANDARD = Path("-")
"""Standard input or output, in the place of a file."""


@asynccontextmanager
async def stored_files(
    redis_url: str,
    clock: Clock,
    timeout_s: float,
    quota: Quota = Quota(),  # noqa: B008  # frozen
) -> AsyncGenerator[FileStorage, None]:
    """Hand out what projects keep, if Redis has the layout of keys that we know.

    Raises:
        ConfigurationError: it has another one.
        StateUnavailable: Redis cannot be reached.
    """
    state = RedisState(redis_url, timeout_s)
    try:
        await Schema(state, clock).require()
        yield FileStorage(ObjectStore(state, quota))
    finally:
        await state.close()


def files_folder_of(path: Path, given: Path | None) -> Path | None:
    """Return the folder with the bytes of files that belong to the lines at ``path``; None if it has no name."""
    if given is not None or path == STANDARD:
        return given
    return path.with_name(path.name + FILES_SUFFIX)
