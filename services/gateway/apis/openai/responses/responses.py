"""``/v1/responses``."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from services.errors import InternalError, InvalidRequest, ObjectNotFound, TandemError
from services.gateway.apis.openai.objects import Call, ObjectEndpoint, included, listed
from services.gateway.apis.openai.responses.bodies import (
    MIN_OUTPUT_TOKENS,
    CreateResponse,
    ResponseFields,
    check_creation,
    check_fields,
    model_of,
    prompt_json,
    response_json,
)
from services.gateway.apis.openai.responses.conversations import conversation_named
from services.gateway.apis.openai.responses.items import input_items
from services.gateway.apis.openai.responses.stream import ResponseStream
from services.gateway.jobs.events import PAUSES, Body, LogEntry
from services.gateway.jobs.feed import JobKey
from services.gateway.responses.state import with_results
from services.gateway.store.kinds import INPUT_ITEM, RESPONSE, Ref
from services.gateway.store.records import Record
from services.gateway.web.connection import while_connected
from services.gateway.web.replies import JsonReply
from services.telemetry.logs import get_logger

RESULTS = "file_search_call.results"
"""What ``include`` calls that which searches of files found."""
POLL_AFTER_MS = "200"
"""When to ask again for a response in the background."""

_log = get_logger(__name__)


class ResponseEndpoints(ObjectEndpoint):
    """Responses: answers that are kept."""

    async def create(self, request: Request) -> Response:
        """Answer, whole or as a stream, or begin to do so in the background."""
        call = await self._call(request)
        body = await self._body(request, CreateResponse)
        check_creation(body, is_lenient=self._services.is_lenient)
        self._services.answers.require_room(call.exchange.project)
        items = await self._items(call, body)
        ref = RESPONSE.new_ref()
        shown = response_json(ref, await model_of(body, self._services.catalog), body, call.exchange.created)
        response = await self._services.responses.service.create(call.exchange.project, shown, items)
        entries = self._entries((call.exchange.project, ref), is_kept=response["store"])
        if body.stream:
            return ResponseStream(entries).reply(self._services)
        if response["background"]:
            return _reply(response)
        shows_results = RESULTS in (body.include or ())
        return _reply(await while_connected(request.receive, self._ended(call, entries, shows_results=shows_results)))

    async def get(self, request: Request) -> Response:
        """Return a response, or its events from any position on."""
        call = await self._call(request)
        record = await self._stored(request, call)
        if request.query_params.get("stream") != "true":
            return _reply(with_results(record.body, record.private) if RESULTS in included(request) else record.body)
        key = (call.exchange.project, record.ref)
        events = self._services.reader.events(key, _position(request), stops_at_pause=True, first_number=0)
        return ResponseStream(events).reply(self._services)

    async def cancel(self, request: Request) -> Response:
        """End a response in the background; what it said so far stays."""
        call = await self._call(request)
        ref = (await self._stored(request, call)).ref
        return _reply(await self._services.responses.service.cancel(call.exchange.project, ref))

    async def delete(self, request: Request) -> Response:
        """Delete a response; what it added to a conversation stays there."""
        call = await self._call(request)
        ref = (await self._stored(request, call)).ref
        await self._services.responses.service.delete(call.exchange.project, ref)
        return JsonReply({"id": ref.id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """Return a page of what the response was asked with."""
        call = await self._call(request)
        ref = (await self._stored(request, call)).ref
        return JsonReply(listed(await call.objects.list(self._query(request, INPUT_ITEM, ref))))

    async def input_tokens(self, request: Request) -> Response:
        """Return how many tokens the prompt of a response would have."""
        call = await self._call(request)
        body = await self._body(request, ResponseFields)
        check_fields(body, is_lenient=self._services.is_lenient)
        items = await self._items(call, body)
        shown = prompt_json(RESPONSE.new_ref(), await model_of(body, self._services.catalog), body)
        shown = {**shown, "max_output_tokens": MIN_OUTPUT_TOKENS}  # no more room than that has to be left
        count = await self._services.responses.service.count_tokens(call.exchange.project, shown, items)
        return JsonReply({"object": "response.input_tokens", "input_tokens": count})

    async def _items(self, call: Call, body: ResponseFields) -> Sequence[Body]:
        if body.conversation_id is not None:
            await conversation_named(self._services, call, body.conversation_id)
        return await input_items(call.objects, body.input)

    async def _stored(self, request: Request, call: Call) -> Record:
        """Return the response that the path names.

        Raises:
            ObjectNotFound: there is none, or it is not to be stored.
        """
        record = await call.objects.get(self._ref(request, RESPONSE), with_private=True)
        if not record.body["store"]:
            raise ObjectNotFound(record.ref.absent_text)
        return record

    async def _ended(self, call: Call, entries: AsyncGenerator[LogEntry, None], *, shows_results: bool) -> Body:
        """Return the response as it ended."""
        async with aclosing(entries) as stream:
            async for entry in stream:
                if entry.pauses_job:
                    response: Body = entry.event.data["response"]
                    if not shows_results:
                        return response
                    record = await call.objects.get(RESPONSE.ref(response["id"]), with_private=True)
                    return with_results(response, record.private)
        raise InternalError("The response ended without saying so.")

    async def _entries(self, key: JobKey, *, is_kept: bool) -> AsyncGenerator[LogEntry, None]:
        """Yield all events; then, or when the client leaves, remove a response that is not to be stored."""
        try:
            async with aclosing(self._services.reader.events(key, 0, stops_at_pause=True)) as entries:
                async for entry in entries:
                    yield entry
        finally:
            if not is_kept:
                await self._forget(*key)

    async def _forget(self, project: str, ref: Ref) -> None:
        try:
            await self._services.responses.service.delete(project, ref)
        except TandemError as error:  # it goes when its time is over
            _log.warning("response.not_removed", response=ref.id, reason=error.message)


def _reply(response: Body) -> JsonReply:
    headers = {} if response["status"] in PAUSES else {"openai-poll-after-ms": POLL_AFTER_MS}
    return JsonReply(response, headers=headers)


def _position(request: Request) -> int:
    """Return the number in the log of the last event that the client has; 0 if it has none."""
    text = request.query_params.get("starting_after")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidRequest("'starting_after' must be the 'sequence_number' of an event.", param="starting_after")
    return int(text) + 1
