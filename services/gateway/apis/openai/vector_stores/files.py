"""``/v1/vector_stores/{vector_store_id}/files`` and ``.../file_batches``."""

from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from services.errors import InvalidRequest, ObjectRefused
from services.gateway.apis.openai.objects import Call, listed
from services.gateway.apis.openai.vector_stores.schemas import (
    AddFile,
    CreateBatch,
    ModifyFile,
    added_file,
    new_files,
)
from services.gateway.apis.openai.vector_stores.stores import StoreEndpoint
from services.gateway.search.index import IndexReader
from services.gateway.search.stores import (
    BATCH_LABEL,
    BATCH_STATUS_LABEL,
    STATUS_LABEL,
    STATUSES,
    NewStoredFile,
    new_batch,
    stored_ref,
)
from services.gateway.store.changes import Create
from services.gateway.store.kinds import FILE, FILE_BATCH, STORED_FILE, VECTOR_STORE, Ref
from services.gateway.store.records import Query, Record
from services.gateway.web.problems import unsupported_value
from services.gateway.web.replies import JsonReply


class StoreFiles(StoreEndpoint):
    """Files of a vector store."""

    async def create(self, request: Request) -> Response:
        """Add a file; it is indexed in the background. One that is there already is indexed anew."""
        call = await self._call(request)
        store = self._ref(request, VECTOR_STORE)
        body = await self._body(request, AddFile)
        self._named(FILE, body.file_id, "file_id")
        await self._add(call, store, [added_file(body)])
        return JsonReply((await self._stores(call).get_file(store, body.file_id)).body)

    async def list(self, request: Request) -> Response:
        """Return a page of files, of one status if ``filter`` names it."""
        call = await self._call(request)
        store = self._ref(request, VECTOR_STORE)
        status = _status(request)
        label = (STATUS_LABEL, status) if status else None
        return JsonReply(listed(await call.objects.list(self._files_query(request, store, label))))

    async def get(self, request: Request) -> Response:
        """Return one file of a vector store."""
        call = await self._call(request)
        return JsonReply((await self._stores(call).get_file(*self._path(request))).body)

    async def modify(self, request: Request) -> Response:
        """Replace the attributes of a file."""
        call = await self._call(request)
        body = await self._body(request, ModifyFile)
        fields = {"attributes": body.attributes or {}}
        return JsonReply((await self._stores(call).change_file(*self._path(request), fields)).body)

    async def delete(self, request: Request) -> Response:
        """Take a file out of a vector store; the file itself stays."""
        call = await self._call(request)
        store, file_id = self._path(request)
        await self._stores(call).remove(store, file_id)
        return JsonReply({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})

    async def content(self, request: Request) -> Response:
        """Return the text of a file as it was parsed."""
        call = await self._call(request)
        record = await self._stores(call).get_file(*self._path(request))
        if record.body["status"] != "completed" and not self._services.is_lenient:
            raise ObjectRefused(f"The file has status '{record.body['status']}'; only a completed one has content.")
        text = await IndexReader(self._services.files.storage.of(call.exchange.project)).text(record.ref)
        return JsonReply(
            {
                "object": "vector_store.file_content.page",
                "data": [{"type": "text", "text": text}],
                "has_more": False,
                "next_page": None,
            }
        )

    def _path(self, request: Request) -> tuple[Ref, str]:
        return self._ref(request, VECTOR_STORE), self._ref(request, FILE).id

    def _files_query(self, request: Request, store: Ref, label: tuple[str, str] | None) -> Query:
        query = self._query(request, FILE, store, label=label)
        after, before = (cursor and stored_ref(store, cursor).id for cursor in (query.after, query.before))
        return replace(query, kind=STORED_FILE, after=after, before=before)

    async def _add(self, call: Call, store: Ref, new: Sequence[NewStoredFile], *, batch: Create | None = None) -> None:
        await self._services.files.storage.register(call.exchange.project)
        await self._stores(call).add(store, new, call.exchange.created, batch=batch)
        self._services.files.ingestions.wake()


class FileBatches(StoreFiles):
    """Files that are added together."""

    async def create(self, request: Request) -> Response:
        """Add several files; they are indexed in the background."""
        call = await self._call(request)
        store = self._ref(request, VECTOR_STORE)
        new = self._new_files(await self._body(request, CreateBatch))
        creation = new_batch(store, call.exchange.created)
        await self._add(call, store, new, batch=creation)
        return await self._batch_reply(call, store, Record(creation.ref, creation.body, 1, 0))

    async def get(self, request: Request) -> Response:
        """Return one file batch."""
        call = await self._call(request)
        store, batch = self._batch_path(request)
        return await self._batch_reply(call, store, await call.objects.get(batch, parent=store))

    async def cancel(self, request: Request) -> Response:
        """Stop the indexing of files that are not indexed yet."""
        call = await self._call(request)
        store, ref = self._batch_path(request)
        batch = await call.objects.get(ref, parent=store)
        await self._stores(call).cancel_batch(store, batch)
        return await self._batch_reply(call, store, await call.objects.get(ref, parent=store))

    async def list_files(self, request: Request) -> Response:
        """Return a page of the files of a batch, of one status if ``filter`` names it."""
        call = await self._call(request)
        store, ref = self._batch_path(request)
        await call.objects.get(ref, parent=store)
        status = _status(request)
        label = (BATCH_STATUS_LABEL, f"{ref.id}.{status}") if status else (BATCH_LABEL, ref.id)
        return JsonReply(listed(await call.objects.list(self._files_query(request, store, label))))

    def _batch_path(self, request: Request) -> tuple[Ref, Ref]:
        batch = self._named(FILE_BATCH, request.path_params["batch_id"], "batch_id")
        return self._ref(request, VECTOR_STORE), batch

    async def _batch_reply(self, call: Call, store: Ref, record: Record) -> Response:
        [shown] = await self._stores(call).shown_batches(store, [record])
        return JsonReply(shown)

    def _new_files(self, body: CreateBatch) -> Sequence[NewStoredFile]:
        """Return the files of a new batch.

        Raises:
            InvalidRequest: none are named, or in both ways.
        """
        if not self._services.is_lenient:
            if body.file_ids is None and body.files is None:
                text = "Missing required parameter: 'file_ids'."
                raise InvalidRequest(text, param="file_ids", code="missing_required_parameter")
            if body.file_ids is not None and body.files is not None:
                raise InvalidRequest("Only one of 'file_ids' and 'files' may be given.", param="files")
        alike = new_files(body.file_ids or [], body.chunking_strategy, body.attributes)
        own = [added_file(file, f"files[{place}].") for place, file in enumerate(body.files or [])]
        by_id = {file.file_id: file for file in (*alike, *own)}
        for file_id in by_id:
            self._named(FILE, file_id, "file_ids")
        return [*by_id.values()]


def _status(request: Request) -> str | None:
    status = request.query_params.get("filter")
    if status and status not in STATUSES:
        problem = unsupported_value(status, STATUSES)
        raise InvalidRequest(problem.message, param="filter", code=problem.code)
    return status or None
