"""How files, uploads and responses end when their time is over."""

from services.gateway.files.storage import ProjectFiles
from services.gateway.search.stores import file_deletion
from services.gateway.store.changes import Delete, Operation, Update
from services.gateway.store.expiry import ExpireAt, RequireDue
from services.gateway.store.kinds import UPLOAD_PART, Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Query

_PAGE = 1000


async def end_file(files: ProjectFiles, due: RequireDue) -> None:
    """Delete a file whose time is over."""
    await files.objects.apply([due, *await file_deletion(files, due.ref)])


async def end_upload(files: ProjectFiles, due: RequireDue) -> None:
    """Give up an upload whose time is over; parts that are left, also of one that was completed, are deleted."""
    ref = due.ref
    record = await files.objects.get(ref)
    status = "expired" if record.body["status"] == "pending" else record.body["status"]
    update = Update(ref, {**record.body, "status": status}, record.version)
    await files.objects.apply([due, update, ExpireAt(ref, None), *await part_deletions(files.objects, ref)])


async def part_deletions(objects: Objects, upload: Ref) -> list[Operation]:
    """Return the deletion of all parts of an upload."""
    return [Delete(part.ref) async for part in objects.each(Query(UPLOAD_PART, upload, limit=_PAGE, order="asc"))]


async def end_response(files: ProjectFiles, due: RequireDue) -> None:
    """Delete a response whose time is over."""
    await files.objects.apply([due, Delete(due.ref)])
