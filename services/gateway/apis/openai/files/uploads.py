"""``/v1/uploads``: large files in parts."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from services.errors import InvalidRequest, ObjectRefused
from services.gateway.apis.openai.files.files import FileEndpoint, FileExpiry, Purpose, expiry_of, file_json, new_file
from services.gateway.apis.openai.objects import Call
from services.gateway.files.blobs import adopted_names
from services.gateway.files.endings import part_deletions
from services.gateway.files.operations import AdoptBytes
from services.gateway.files.storage import ProjectFiles, StoredBytes
from services.gateway.store.changes import Create, Operation, Update
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import FILE, UPLOAD, UPLOAD_PART, Ref
from services.gateway.store.records import Record
from services.gateway.web.problems import above_maximum
from services.gateway.web.replies import JsonReply
from services.gateway.web.validation import ClosedBody

MAX_PARTS = 10_000
UPLOAD_LIFE_S = 3600


class CreateUpload(ClosedBody):
    """Body of ``POST /v1/uploads``."""

    filename: str = Field(min_length=1, max_length=255)
    purpose: Purpose
    num_bytes: int = Field(alias="bytes", ge=0)
    mime_type: str = Field(max_length=255)
    expires_after: FileExpiry | None = None


class CompleteUpload(ClosedBody):
    """Body of ``POST /v1/uploads/{upload_id}/complete``."""

    part_ids: list[str] = Field(max_length=MAX_PARTS)
    md5: str | None = Field(default=None, max_length=64)


class Uploads(FileEndpoint):
    """Uploads: parts that become a file."""

    async def create(self, request: Request) -> Response:
        """Begin an upload; it ends after an hour."""
        call = await self._call(request)
        body = await self._body(request, CreateUpload)
        most = self._services.limits.max_file_bytes
        if body.num_bytes > most:
            problem = above_maximum("bytes", body.num_bytes, most)
            raise InvalidRequest(problem.message, param="bytes", code=problem.code)
        ref, created = UPLOAD.new_ref(), call.exchange.created
        shown = upload_json(ref, created, body.filename, body.num_bytes, body.purpose)
        expires_at = expiry_of(body.purpose, body.expires_after, created)
        life = b"" if expires_at is None else str(expires_at - created).encode()
        await self._services.files.storage.register(call.exchange.project)
        await call.objects.apply([Create(ref, shown, private=life), ExpireAt(ref, shown["expires_at"])])
        return JsonReply(shown)

    async def add_part(self, request: Request) -> Response:
        """Take a part; parts may be sent at the same time and in any order."""
        call = await self._call(request)
        upload = await self._pending(call, self._ref(request, UPLOAD))
        async with self._files(call).blobs.staged() as staged:
            form = await self._form(request, "data", staged)
            if form.fields:
                name = next(iter(form.fields))[:255]
                raise InvalidRequest(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
            ref = UPLOAD_PART.new_ref()
            shown = part_json(ref, upload.ref, call.exchange.created)
            stored = StoredBytes(staged.num_bytes, len(staged.names))
            await call.objects.apply(
                [Create(ref, shown, upload.ref, private=stored.to_bytes()), AdoptBytes(ref, staged.names)]
            )
        return JsonReply(shown)

    async def complete(self, request: Request) -> Response:
        """Make the file of the named parts, in the order of their names."""
        call = await self._call(request)
        body = await self._body(request, CompleteUpload)
        upload = await self._pending(call, self._ref(request, UPLOAD))
        parts = await self._parts(call, upload.ref, body.part_ids)
        stored = [StoredBytes.from_bytes(part.private) for part in parts]
        num_bytes = sum(each.num_bytes for each in stored)
        if num_bytes != upload.body["bytes"]:
            raise ObjectRefused(
                f"The parts have {num_bytes} bytes, but the upload was announced with {upload.body['bytes']}.",
                param="part_ids",
            )
        if body.md5 is not None:
            await self._check_md5(self._files(call), parts, stored, body.md5)
        whole = StoredBytes(num_bytes, sum(each.num_chunks for each in stored))
        sources = [
            name for part, each in zip(parts, stored, strict=True) for name in adopted_names(part.ref, each.num_chunks)
        ]
        shown, operations = _completion(upload, whole, sources, call.exchange.created)
        await call.objects.apply([*operations, *await part_deletions(call.objects, upload.ref)])
        return JsonReply(shown)

    async def cancel(self, request: Request) -> Response:
        """Give up an upload; its parts are deleted."""
        call = await self._call(request)
        upload = await self._pending(call, self._ref(request, UPLOAD))
        shown = {**upload.body, "status": "cancelled"}
        await call.objects.apply(
            [Update(upload.ref, shown, upload.version), *await part_deletions(call.objects, upload.ref)]
        )
        return JsonReply(shown)

    async def _pending(self, call: Call, ref: Ref) -> Record:
        record = await call.objects.get(ref, with_private=True)
        is_over = record.body["expires_at"] <= call.exchange.created
        status = "expired" if is_over and record.body["status"] == "pending" else record.body["status"]
        if status != "pending":
            raise ObjectRefused(f"Upload '{ref.id}' has status '{status}'; only a pending one can be changed.")
        return record

    async def _parts(self, call: Call, upload: Ref, part_ids: Sequence[str]) -> list[Record]:
        if len(set(part_ids)) != len(part_ids):
            raise InvalidRequest("A part is named twice.", param="part_ids")
        refs = [self._named(UPLOAD_PART, part_id, f"part_ids[{place}]") for place, part_id in enumerate(part_ids)]
        return [await call.objects.get(ref, parent=upload, with_private=True) for ref in refs]

    async def _check_md5(
        self, files: ProjectFiles, parts: Sequence[Record], stored: Sequence[StoredBytes], wanted: str
    ) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        for part, each in zip(parts, stored, strict=True):
            async for chunk in files.blobs.read(part.ref, each.num_chunks):
                await asyncio.to_thread(digest.update, chunk)
        if digest.hexdigest() != wanted.lower():
            raise ObjectRefused(f"The md5 of the parts is {digest.hexdigest()}, not '{wanted}'.", param="md5")


def _completion(
    upload: Record, stored: StoredBytes, sources: list[str], created: int
) -> tuple[dict[str, Any], list[Operation]]:
    """Return the completed upload, and what makes its file and completes it."""
    ref, body = FILE.new_ref(), upload.body
    expires_at = created + int(upload.private) if upload.private else None
    file = file_json(ref, created, body["filename"], stored.num_bytes, body["purpose"], expires_at)
    shown = {**body, "status": "completed", "file": file}
    return shown, [*new_file(ref, file, stored, sources), Update(upload.ref, shown, upload.version)]


def upload_json(ref: Ref, created: int, filename: str, num_bytes: int, purpose: str) -> dict[str, Any]:
    """Return a new upload as the API shows it."""
    return {
        "id": ref.id,
        "object": "upload",
        "created_at": created,
        "filename": filename,
        "bytes": num_bytes,
        "purpose": purpose,
        "status": "pending",
        "expires_at": created + UPLOAD_LIFE_S,
    }


def part_json(ref: Ref, upload: Ref, created: int) -> dict[str, Any]:
    """Return a part of an upload as the API shows it."""
    return {"id": ref.id, "object": "upload.part", "created_at": created, "upload_id": upload.id}
