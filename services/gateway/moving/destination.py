"""The project that objects are brought into."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.errors import Conflict, InvalidRequest, ObjectNotFound
from services.gateway.files.storage import ProjectFiles
from services.gateway.jobs.events import Body
from services.gateway.store.changes import Create, Operation


class DifferentObject(Conflict):
    """The project has an object of that id, which is another one."""

    code = "different_object"


@dataclass(frozen=True)
class Destination:
    """Where objects go, each in one change; all methods raise StateUnavailable when Redis cannot be reached."""

    files: ProjectFiles
    """Of the project."""
    folder: Path | None
    """Where the bytes of files lie, each under the file's id or name."""
    now: int
    """Seconds since the Unix epoch."""
    retention_s: int
    """How long a response is kept that does not say it."""

    async def make(self, create: Create, *, after: Sequence[Operation] = (), ignored: Collection[str] = ()) -> bool:
        """Make an object in one change with further operations; return False if it was there already.

        Args:
            create: the object.
            after: what the same change does behind it.
            ignored: fields in which the one that is there may differ: they change by themselves.

        Raises:
            ObjectNotFound: its parent does not exist.
            DifferentObject: another object has its id.
            TandemError: what an operation of the change says that it cannot be done.
        """
        try:
            await self.files.objects.apply([create, *after])
        except Conflict as conflict:
            try:
                record = await self.files.objects.get(create.ref, parent=create.parent)
            except ObjectNotFound:  # elsewhere, or deleted and not removed yet
                raise conflict from None
            self.require_same(create, record.body, ignored)
            return False
        return True

    def require_same(self, create: Create, present: Body, ignored: Collection[str] = ()) -> None:
        """Refuse an object that the project has otherwise.

        Raises:
            DifferentObject: it has.
        """
        names = {*create.body, *present} - set(ignored)
        if differing := sorted(name for name in names if create.body.get(name) != present.get(name)):
            raise different(create, f"differs in {', '.join(differing)}")

    def path_of(self, file_id: str, filename: str) -> Path:
        """Return where the bytes of a file lie.

        Raises:
            InvalidRequest: they are not in the folder, or there is no folder.
        """
        if self.folder is None:
            raise InvalidRequest("Name the folder with the bytes of files: --files-folder FOLDER.")
        names = [file_id, *([filename] if Path(filename).name == filename else [])]
        for path in (self.folder / name for name in names):
            if path.is_file():
                return path
        raise InvalidRequest(f"The bytes of the file are missing: put them into {self.folder} as {' or '.join(names)}.")


def different(create: Create, how: str) -> DifferentObject:
    """Return the error for an object whose id another one has."""
    return DifferentObject(f"The project has another {create.ref.kind.noun} '{create.ref.id}': it {how}.")
