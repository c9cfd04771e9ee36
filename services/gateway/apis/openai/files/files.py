"""``/v1/files``."""

from collections.abc import AsyncGenerator
from typing import Any, Literal
from urllib.parse import quote

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.apis.openai.objects import Call, ObjectEndpoint, listed
from services.gateway.files.blobs import StagedBytes
from services.gateway.files.forms import Form, FormReader, nested
from services.gateway.files.operations import AdoptBytes
from services.gateway.files.storage import ProjectFiles, StoredBytes
from services.gateway.search.stores import file_deletion
from services.gateway.store.changes import Create, Operation
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import FILE, Ref
from services.gateway.store.records import Record
from services.gateway.web.bytes_reply import BytesReply
from services.gateway.web.replies import JsonReply
from services.gateway.web.validation import ClosedBody, parse_body

MAX_FILES_PAGE = 10_000
MIN_LIFE_S = 3600
MAX_LIFE_S = 2_592_000
PURPOSE_LABEL = "purpose"

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data"]


class FileExpiry(ClosedBody):
    """When a file ends."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_LIFE_S, le=MAX_LIFE_S)


class CreateFile(ClosedBody):
    """The fields of a form to ``POST /v1/files``, besides the file."""

    purpose: Purpose
    expires_after: FileExpiry | None = None


class FileEndpoint(ObjectEndpoint):
    """Base of the endpoints that take files."""

    def _files(self, call: Call) -> ProjectFiles:
        return self._services.files.storage.of(call.exchange.project)

    async def _form(self, request: Request, name: str, staged: StagedBytes) -> Form:
        """Read a form; its file goes to ``staged``."""
        content_type = request.headers.get("content-type", "")
        form = await FormReader(name, staged.write).read(content_type, self._services.entrance.body_chunks(request))
        await staged.finish()
        return form


class Files(FileEndpoint):
    """Files: bytes with a name and a purpose."""

    async def create(self, request: Request) -> Response:
        """Take a file."""
        call = await self._call(request)
        files = self._files(call)
        async with files.blobs.staged() as staged:
            form = await self._form(request, "file", staged)
            body = parse_body(CreateFile, orjson.dumps(nested(form.fields)))
            await self._services.files.storage.register(call.exchange.project)
            ref = FILE.new_ref()
            expires_at = expiry_of(body.purpose, body.expires_after, call.exchange.created)
            shown = file_json(ref, call.exchange.created, form.filename, staged.num_bytes, body.purpose, expires_at)
            stored = StoredBytes(staged.num_bytes, len(staged.names))
            await files.objects.apply(new_file(ref, shown, stored, staged.names))
        return JsonReply(shown)

    async def list(self, request: Request) -> Response:
        """Return a page of files, of one purpose if the request names it."""
        call = await self._call(request)
        purpose = request.query_params.get(PURPOSE_LABEL)
        label = (PURPOSE_LABEL, purpose) if purpose else None
        query = self._query(request, FILE, label=label, max_limit=MAX_FILES_PAGE, default_limit=MAX_FILES_PAGE)
        return JsonReply(listed(await call.objects.list(query)))

    async def get(self, request: Request) -> Response:
        """Return one file, without its bytes."""
        call = await self._call(request)
        return JsonReply((await call.objects.get(self._ref(request, FILE))).body)

    async def delete(self, request: Request) -> Response:
        """Delete a file."""
        call = await self._call(request)
        ref = self._ref(request, FILE)
        await call.objects.apply(await file_deletion(self._files(call), ref))
        return JsonReply({"id": ref.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """Return the bytes of a file."""
        call = await self._call(request)
        record = await call.objects.get(self._ref(request, FILE), with_private=True)
        return BytesReply(
            self._bytes(self._files(call), record),
            num_bytes=record.body["bytes"],
            headers={"content-disposition": f"attachment; filename*=UTF-8''{quote(record.body['filename'])}"},
            send_timeout_s=self._services.limits.send_timeout_s,
        )

    def _bytes(self, files: ProjectFiles, record: Record) -> AsyncGenerator[bytes, None]:
        stored = StoredBytes.from_bytes(record.private)
        return files.blobs.read(record.ref, stored.num_chunks)


def new_file(ref: Ref, shown: dict[str, Any], stored: StoredBytes, sources: list[str]) -> list[Operation]:
    """Return the creation of a file from bytes that lie elsewhere."""
    labels = {PURPOSE_LABEL: shown["purpose"]}
    expires_at = shown.get("expires_at")
    return [
        Create(ref, shown, labels=labels, private=stored.to_bytes()),
        AdoptBytes(ref, sources),
        *([ExpireAt(ref, expires_at)] if expires_at is not None else []),
    ]


def expiry_of(purpose: str, expiry: FileExpiry | None, created: int) -> int | None:
    """Return when a file ends, in seconds since the Unix epoch; inputs of batches are not kept for ever."""
    if expiry is not None:
        return created + expiry.seconds
    return created + MAX_LIFE_S if purpose == "batch" else None


def file_json(
    ref: Ref, created: int, filename: str, num_bytes: int, purpose: str, expires_at: int | None
) -> dict[str, Any]:
    """Return a file as the API shows it."""
    shown = {
        "id": ref.id,
        "object": "file",
        "bytes": num_bytes,
        "created_at": created,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }
    return shown if expires_at is None else {**shown, "expires_at": expires_at}
