"""What a gateway does with a response that it holds.

    queued --- plan the turn, write it down ---> in_progress --- write what the model says, batch by batch ---> the end

The end is one change: the response, its last events, and what it adds to its conversation.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace

import orjson

from services.errors import DeadlineExceeded, ObjectNotFound
from services.gateway.jobs.events import Body, Event
from services.gateway.jobs.execution import Cancelled, Ending, Expired, Failed
from services.gateway.jobs.held import HeldJob, Writing
from services.gateway.responses import documents
from services.gateway.responses.documents import response_event
from services.gateway.responses.history import ContextReader, own_work, read_items
from services.gateway.responses.items import creation, is_bound, is_cut_call, thread_behind
from services.gateway.responses.planning import plan_response, with_sampling
from services.gateway.responses.state import ResponseState
from services.gateway.responses.transcript import Citable, Transcript, TranscriptWriter
from services.gateway.runs.citations import next_search
from services.gateway.runs.file_search import FileSearch, SearchScope, query_of
from services.gateway.runs.form import max_searches
from services.gateway.runs.history import called_by
from services.gateway.runs.history_places import HistoryPlaces
from services.gateway.runs.job import Job, Used
from services.gateway.runs.search_calls import NAME, Found, Search
from services.gateway.runs.turn_log import TurnLog, binding_of, used_by
from services.gateway.runs.turns import HistoryEntry, TurnEnded, TurnEvent, TurnPlan
from services.gateway.search.filter_json import filter_of
from services.gateway.store.changes import Create, Operation
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import OUTPUT_ITEM
from services.telemetry.logs import get_logger

UNSTORED_S = 60
"""How long a response is kept that shall not be stored, if whoever asked for it does not remove it."""

_log = get_logger(__name__)


class ResponseWork:
    """The work on one response."""

    def __init__(
        self, held: HeldJob, contexts: ContextReader, turn_log: TurnLog, search: FileSearch, places: HistoryPlaces
    ) -> None:
        self._held = held
        self._contexts = contexts
        self._places = places
        self._turn_log = turn_log
        self._search = search
        self._state = ResponseState.from_bytes(held.private)
        self._said = Transcript()

    @property
    def held(self) -> HeldJob:
        """The response."""
        return self._held

    async def resume(self) -> None:
        """Read what the response has said."""
        position, first_event = 0, self._state.job.first_event
        async for entry in self.held.entries(0):
            if entry.number == first_event:
                self._said.begin_turn()
            self._said.apply(entry.event)
            position = entry.number
        if first_event > position:
            self._said.begin_turn()

    async def advance(self) -> None:
        """Make a turn: the response is over then, or what it searched for was found."""
        plan = self._state.job.plan
        if plan is None:
            async with self._places.place():
                plan = await self._plan()
        if plan is None:
            return
        if self.held.body["status"] == "queued":
            body = documents.started(self.held.body)
            await self.held.commit(Writing([response_event(body)], body))
        ended = await self._turn_log.write(self.held, plan, self._said.token_ids, self._take)
        try:
            await self._finish(plan, ended)
        except ObjectNotFound as error:  # its conversation was deleted
            await self.end(Failed(error))

    async def end(self, ending: Ending, *, is_patient: bool = True) -> None:
        """End the response wherever it stands; what it said so far stays."""
        closing = self._writer(self._said).closing("incomplete")
        job = self._cut()
        body, output = self.held.body, self._said.output
        if isinstance(ending, Cancelled):
            ended = documents.cancelled(body, output, job.total)
        else:
            error = DeadlineExceeded("The response took too long.") if isinstance(ending, Expired) else ending.error
            ended = documents.failed(body, output, job.total, error)
        await self._end(closing, ended, replace(self._state, job=job), is_patient=is_patient)

    async def _plan(self) -> TurnPlan | None:
        """Decide how the next turn is made, and write it down; end the response if its limit forbids the turn."""
        held, job = self.held, self._state.job
        limit = held.body["max_output_tokens"]
        if limit is not None and job.used.completion_tokens >= limit:
            await self._end((), documents.incomplete(held.body, self._said.output, job.total), self._state)
            return None
        items = await read_items(held.jobs.objects, held.ref)
        context = await self._contexts.read(held.jobs.project, held.body, items)
        own = own_work(self._said.output, self._state.found)
        history = [*context.entries, *([replace(own, binding=job.called)] if own is not None else [])]
        called = called_by(own) if own is not None else ()
        turns, used_tokens = self._turn_log.turns, job.used.completion_tokens
        plan = await plan_response(turns, held.body, history, used_tokens, called, is_cut=context.is_cut)
        job = replace(job, plan=plan, first_event=held.last_event + 1, sources=sources_of(history))
        state = replace(self._state, job=job)
        await held.commit(Writing((), with_sampling(held.body, plan), state.to_bytes()))
        self._state = state
        self._said.begin_turn()
        return plan

    async def _take(self, said: Sequence[TurnEvent]) -> None:
        if events := self._writer(self._said).events(said):
            await self.held.commit(Writing(events))

    async def _finish(self, plan: TurnPlan, ended: TurnEnded) -> None:
        said, is_whole = deepcopy(self._said), ended.reason == "stop"  # what is not written down yet was not said
        writer = self._writer(said)
        told = writer.events([ended])
        job = replace(self._state.job, turn=used_by(plan, ended, len(said.token_ids)))
        state = replace(self._state, job=job)  # ours only when it is written: what fails is done again from here
        if is_whole and said.calls_of("file_search_call"):
            found = await self._found(plan, said, ended)
            state = replace(state, found={**state.found, **_by_item(said, found)})
            told += writer.found({index: query_of(each.arguments) for index, each in found.items()})
            if not said.calls_of("function_call"):
                called = binding_of(plan, ended, said.token_ids)
                state = replace(state, job=replace(job.next_turn(), called=called))
                await self.held.commit(Writing(told, private=state.to_bytes()))
                self._said, self._state = said, state
                return
        closing = [*told, *writer.closing("completed" if is_whole else "incomplete")]
        body, output = self.held.body, said.output
        if is_whole:
            shown = documents.completed(body, output, job.total, self.held.now)
        else:
            shown = documents.incomplete(body, output, job.total)
        state = replace(state, binding=binding_of(plan, ended, said.token_ids))
        await self._end(closing, shown, state, await self._additions(output, state))

    async def _found(self, plan: TurnPlan, said: Transcript, ended: TurnEnded) -> dict[int, Found]:
        """Return what the searches of the turn found, by the index of the call; those over the limit are not made."""
        held, earlier = self.held, list(self._state.found.values())
        wanted = said.calls_of("file_search_call")[: max_searches(held.body) - len(earlier)]
        first = next_search(self._state.job.sources)
        searches = [Search(ended.calls[index].arguments, first + place) for place, index in enumerate(wanted)]
        tool = next(tool for tool in held.body["tools"] if tool["type"] == NAME)
        wanted_files = filter_of(tool["filters"]) if tool.get("filters") else None
        scope = SearchScope(held.ref.id, tool["vector_store_ids"], tool, wanted_files)
        found = await self._search.find(held.jobs.project, scope, plan.card_digest, searches, earlier)
        return dict(zip(wanted, found, strict=True))

    def _writer(self, said: Transcript) -> TranscriptWriter:
        found = self._state.found.values()
        names = {each["file_id"]: each["file_name"] for one in found for each in one.shown["results"]}
        is_searching = any(tool["type"] == NAME for tool in self.held.body["tools"])
        return TranscriptWriter(said, Citable(self._state.job.sources, names, is_searching))

    async def _additions(self, output: Sequence[Body], state: ResponseState) -> list[Operation]:
        """Return what the response adds to its conversation."""
        if (thread := thread_behind(self.held.body)) is None:
            return []
        items = await read_items(self.held.jobs.objects, self.held.ref)
        bound = {item_id: orjson.dumps(asdict(found)) for item_id, found in state.found.items()}
        if state.binding is not None and output and is_bound(output[-1]):
            bound[output[-1]["id"]] = state.binding.to_bytes()
        added = [*items, *(item for item in output if not is_cut_call(item))]
        return [creation(item, thread, self.held.now, bound.get(item["id"])) for item in added]

    async def _end(
        self,
        closing: Sequence[Event],
        ended: Body,
        state: ResponseState,
        additions: Sequence[Operation] = (),
        *,
        is_patient: bool = True,
    ) -> None:
        ref, is_stored = self.held.ref, ended["store"]
        kept_s = round(self.held.terms.retention_s) if is_stored else UNSTORED_S
        # Items of the output can be named by their ids, as those of the input can.
        items = [Create(OUTPUT_ITEM.ref(item["id"]), item, ref) for item in ended["output"]] if is_stored else []
        further = [*additions, *items, ExpireAt(ref, self.held.now + kept_s)]
        kept = replace(state, job=Job())  # nobody goes on with it; what it found and its ids are for those after it
        writing = Writing([*closing, response_event(ended)], ended, kept.to_bytes(), further=further)
        await self.held.commit(writing, is_patient=is_patient)
        _log.event("response.ended", response=self.held.ref.id, status=ended["status"])

    def _cut(self) -> Job:
        """Return the job with its turn ended where it stands."""
        job, said = self._state.job, self._said
        if job.plan is None or job.turn is not None:
            return job
        num_prompt_tokens = len(job.plan.prompt_ids) if said.token_ids else 0
        return replace(job, turn=Used(num_prompt_tokens, len(said.token_ids)))


def sources_of(history: Sequence[HistoryEntry]) -> dict[str, str]:
    """Return the files by the marks that a prompt has of their passages."""
    return {mark: file_id for entry in history for mark, file_id in entry.sources.items()}


def _by_item(said: Transcript, found: Mapping[int, Found]) -> dict[str, Found]:
    return {said.output[said.calls[index]]["id"]: each for index, each in found.items()}
