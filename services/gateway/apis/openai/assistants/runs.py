"""``/v1/threads/{thread_id}/runs`` and ``/v1/threads/runs``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.errors import InvalidRequest, NoDecodeWorker
from services.gateway.apis.openai.assistants.found_content import step_with_content, wants_content
from services.gateway.apis.openai.assistants.messages import new_messages
from services.gateway.apis.openai.assistants.run_bodies import (
    CreateRun,
    CreateThreadAndRun,
    ModifyRun,
    RunFields,
    SubmitToolOutputs,
    outputs_by_call,
    run_json,
)
from services.gateway.apis.openai.assistants.run_stream import run_stream
from services.gateway.apis.openai.assistants.stores import with_thread_stores
from services.gateway.apis.openai.assistants.threads import CreateThread, new_thread
from services.gateway.apis.openai.objects import Call, ObjectEndpoint, listed, listed_bodies
from services.gateway.jobs.events import PAUSES, Body
from services.gateway.runs.form import check_form
from services.gateway.runs.service import NewRun
from services.gateway.store.kinds import ASSISTANT, RUN, STEP, THREAD, Ref
from services.gateway.store.records import Record
from services.gateway.web.replies import JsonReply

POLL_AFTER_MS = "200"
"""When to ask again for a run that is being worked on; clients that do not read it ask once a second."""


class RunEndpoints(ObjectEndpoint):
    """Runs: an assistant works on a thread."""

    async def create(self, request: Request) -> Response:
        """Begin to work on a thread."""
        call = await self._call(request)
        thread, body = self._ref(request, THREAD), await self._body(request, CreateRun)
        messages = new_messages(
            thread, body.additional_messages or (), call.exchange.created, path="additional_messages"
        )
        may_wait = self._services.runs.queues_by_default if body.if_active is None else body.if_active == "queue"
        return await self._begin(
            request, call, thread, body, lambda ref, run: NewRun(ref, run, messages, may_wait=may_wait)
        )

    async def create_with_thread(self, request: Request) -> Response:
        """Make a thread and begin to work on it."""
        call = await self._call(request)
        body = await self._body(request, CreateThreadAndRun)
        thread = body.thread or CreateThread()
        if thread.tool_resources is None:
            thread = thread.model_copy(update={"tool_resources": body.tool_resources})
        thread, stores = await with_thread_stores(self._services, call, thread, thread.messages or ())
        creations = new_thread(
            thread, call.exchange.created, is_lenient=self._services.is_lenient, path="thread.messages"
        )
        reply = await self._begin(
            request, call, creations[0].ref, body, lambda ref, run: NewRun(ref, run, thread=creations, stores=stores)
        )
        self._services.files.ingestions.wake()
        return reply

    async def list(self, request: Request) -> Response:
        """Return a page of the runs of a thread."""
        call = await self._call(request)
        return JsonReply(listed(await call.objects.list(self._query(request, RUN, self._ref(request, THREAD)))))

    async def get(self, request: Request) -> Response:
        """Return one run."""
        call = await self._call(request)
        return _run_reply((await self._run(request, call)).body)

    async def modify(self, request: Request) -> Response:
        """Replace the metadata, if the body names them."""
        call = await self._call(request)
        thread, ref = self._ref(request, THREAD), self._ref(request, RUN)
        body = await self._body(request, ModifyRun)
        fields = {"metadata": body.metadata or {}} if "metadata" in body.model_fields_set else {}
        record = await call.objects.edit(ref, lambda run: {**run, **fields}, parent=thread)
        return JsonReply(record.body)

    async def cancel(self, request: Request) -> Response:
        """End a run; what it wrote so far stays."""
        call = await self._call(request)
        ref = (await self._run(request, call)).ref
        return JsonReply(await self._services.runs.service.cancel(call.exchange.project, ref))

    async def submit_tool_outputs(self, request: Request) -> Response:
        """Let a run that waits for the outputs of its calls go on."""
        call = await self._call(request)
        record, body = await self._run(request, call), await self._body(request, SubmitToolOutputs)
        with_content = wants_content(request)
        outputs = outputs_by_call(record.body, body, is_lenient=self._services.is_lenient)
        run, position = await self._services.runs.service.submit(call.exchange.project, record.ref, outputs)
        if body.stream:
            key = (call.exchange.project, record.ref)
            return run_stream(self._services, key, position, stops_at_pause=True, with_content=with_content)
        return _run_reply(run)

    async def events(self, request: Request) -> Response:
        """Stream the events of a run from any position on, for clients that were cut off."""
        call = await self._call(request)
        with_content, after = wants_content(request), _position(request)
        key = (call.exchange.project, (await self._run(request, call)).ref)
        return run_stream(self._services, key, after, stops_at_pause=False, with_content=with_content)

    async def list_steps(self, request: Request) -> Response:
        """Return a page of the steps of a run."""
        call = await self._call(request)
        show = _shown_steps(request)
        ref = (await self._run(request, call)).ref
        page = await call.objects.list(replace(self._query(request, STEP, ref), with_private=True))
        return JsonReply(listed_bodies([show(record) for record in page.records], has_more=page.has_more))

    async def get_step(self, request: Request) -> Response:
        """Return one step."""
        call = await self._call(request)
        show = _shown_steps(request)
        ref = (await self._run(request, call)).ref
        return JsonReply(show(await call.objects.get(self._ref(request, STEP), parent=ref, with_private=True)))

    async def _run(self, request: Request, call: Call) -> Record:
        """Return the run that the path names.

        Raises:
            ObjectNotFound: there is none in this thread.
        """
        return await call.objects.get(self._ref(request, RUN), parent=self._ref(request, THREAD))

    async def _begin(
        self,
        request: Request,
        call: Call,
        thread: Ref,
        body: RunFields,
        new_run: Callable[[Ref, Body], NewRun],
    ) -> Response:
        with_content = wants_content(request)
        services, created = self._services, call.exchange.created
        services.answers.require_room(call.exchange.project)
        assistant = await call.objects.get(self._named(ASSISTANT, body.assistant_id, "assistant_id"))
        ref = RUN.new_ref()
        expires = created + round(services.runs.expiry_s)
        shown = run_json(ref, thread, assistant.body, body, created=created, expires=expires)
        await self._check(shown)
        await services.runs.service.create(call.exchange.project, new_run(ref, shown))
        if body.stream:
            key = (call.exchange.project, ref)
            return run_stream(services, key, 0, stops_at_pause=True, with_content=with_content)
        return _run_reply(shown)

    async def _check(self, run: Body) -> None:
        """Refuse a model that nobody ever served; one that is away may come back while the run waits."""
        if self._services.is_lenient:
            return
        check_form(run)
        try:
            await self._services.catalog.resolve(run["model"])
        except NoDecodeWorker:
            return


def _shown_steps(request: Request) -> Callable[[Record], Body]:
    """Return what shows steps as ``include[]`` asks for them."""
    return step_with_content if wants_content(request) else lambda record: record.body


def _run_reply(run: Body | Mapping[str, Any]) -> JsonReply:
    headers = {} if run["status"] in PAUSES else {"openai-poll-after-ms": POLL_AFTER_MS}
    return JsonReply(run, headers=headers)


def _position(request: Request) -> int:
    """Return the number of the last event that the client has; one that reconnects has more than its URL says."""
    given = {
        "starting_after": request.query_params.get("starting_after"),
        "Last-Event-ID": request.headers.get("last-event-id"),
    }
    for name, text in given.items():
        if text and not (text.isascii() and text.isdigit() and len(text) < 16):
            raise InvalidRequest(f"'{name}' must be the number of an event, as its 'id' line tells it.", param=name)
    return max(int(text or 0) for text in given.values())
