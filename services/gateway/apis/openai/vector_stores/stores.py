"""``/v1/vector_stores``."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.errors import Conflict, InvalidRequest
from services.gateway.apis.openai.objects import Call, ObjectEndpoint, deleted, listed_bodies
from services.gateway.apis.openai.vector_stores.schemas import CreateStore, ModifyStore, SearchBody, new_files
from services.gateway.search.filter_json import filter_of
from services.gateway.search.searches import SearchRequest, SearchResult
from services.gateway.search.stores import VectorStores, new_store, with_expiry
from services.gateway.store.changes import Update
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import VECTOR_STORE, Ref
from services.gateway.store.records import Record
from services.gateway.web.connection import while_connected
from services.gateway.web.problems import wrong_type
from services.gateway.web.replies import JsonReply

MAX_QUERIES = 32
_MAX_ATTEMPTS = 20
_DEFAULTS: Mapping[str, Any] = {"name": "", "expires_after": None, "metadata": {}}


class StoreEndpoint(ObjectEndpoint):
    """Base of the endpoints of vector stores."""

    def _stores(self, call: Call) -> VectorStores:
        return VectorStores(self._services.files.storage.of(call.exchange.project))

    async def _reply(self, call: Call, record: Record) -> Response:
        [shown] = await self._stores(call).shown([record])
        return JsonReply(shown)


class Stores(StoreEndpoint):
    """Vector stores: files that can be searched."""

    async def create(self, request: Request) -> Response:
        """Make a vector store; its first files are indexed in the background."""
        call = await self._call(request)
        body = await self._body(request, CreateStore)
        fields = body.model_dump(exclude={"file_ids", "chunking_strategy"})
        new = new_files(body.file_ids or [], body.chunking_strategy)
        kept, operations = await new_store(
            self._services.files.storage, call.exchange.project, call.exchange.created, fields, new
        )
        await call.objects.apply(operations)
        self._services.files.ingestions.wake()
        return await self._reply(call, Record(VECTOR_STORE.ref(kept["id"]), kept, 1, 0))

    async def list(self, request: Request) -> Response:
        """Return a page of vector stores."""
        call = await self._call(request)
        page = await call.objects.list(self._query(request, VECTOR_STORE))
        return JsonReply(listed_bodies(await self._stores(call).shown(page.records), has_more=page.has_more))

    async def get(self, request: Request) -> Response:
        """Return one vector store."""
        call = await self._call(request)
        return await self._reply(call, await call.objects.get(self._ref(request, VECTOR_STORE)))

    async def modify(self, request: Request) -> Response:
        """Change what the body names."""
        call = await self._call(request)
        ref = self._ref(request, VECTOR_STORE)
        given = (await self._body(request, ModifyStore)).model_dump(exclude_unset=True)
        fields = {name: _DEFAULTS[name] if value is None else value for name, value in given.items()}
        return await self._reply(call, await self._modified(call, ref, fields))

    async def delete(self, request: Request) -> Response:
        """Delete a vector store; the files that it was made of stay."""
        call = await self._call(request)
        ref = self._ref(request, VECTOR_STORE)
        await call.objects.delete(ref)
        return JsonReply(deleted(ref, "vector_store"))

    async def search(self, request: Request) -> Response:
        """Return the chunks that are most like a query."""
        call = await self._call(request)
        ref = self._ref(request, VECTOR_STORE)
        body = await self._body(request, SearchBody)
        queries = _queries(body.query)
        wanted = SearchRequest(
            queries,
            max_num_results=body.max_num_results or 10,
            score_threshold=(body.ranking_options.score_threshold if body.ranking_options else None) or 0.0,
            filter=filter_of(body.filters) if body.filters is not None else None,
        )
        searching = self._services.files.searches.search(
            call.exchange.project, [ref.id], wanted, call.exchange.request_id
        )
        results = await while_connected(request.receive, searching)
        return JsonReply(
            {
                "object": "vector_store.search_results.page",
                "search_query": queries,
                "data": [result_json(result) for result in results],
                "has_more": False,
                "next_page": None,
            }
        )

    async def _modified(self, call: Call, ref: Ref, fields: Mapping[str, Any]) -> Record:
        for _ in range(_MAX_ATTEMPTS):
            record = await call.objects.get(ref)
            body = with_expiry({**record.body, **fields})
            try:
                await call.objects.apply([Update(ref, body, record.version), ExpireAt(ref, body["expires_at"])])
            except Conflict as error:
                conflict = error
                continue
            return Record(ref, body, record.version + 1, record.sequence)
        raise conflict


def result_json(result: SearchResult) -> dict[str, Any]:
    """Return a result of a search as the API shows it."""
    return {
        "file_id": result.file_id,
        "filename": result.filename,
        "score": result.score,
        "attributes": result.attributes,
        "content": [{"type": "text", "text": result.text}],
    }


def _queries(value: Any) -> list[str]:
    queries = [value] if isinstance(value, str) else value
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        problem = wrong_type("query", "a string or an array of strings", value)
        raise InvalidRequest(problem.message, param="query", code=problem.code)
    if not queries or len(queries) > MAX_QUERIES or not all(query.strip() for query in queries):
        raise InvalidRequest(f"'query' must be 1 to {MAX_QUERIES} texts that are not empty.", param="query")
    return queries
