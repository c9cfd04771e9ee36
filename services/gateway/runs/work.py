"""What a gateway does with a run that it holds.

    queued --- plan the turn, write it down ---> in_progress --- write what the model says, batch by batch ---+
       ^                                                                                                     |
       +--- the client submits outputs <--- requires_action <--- calls --- the turn ends --- text ---> completed

Everything that decides the rest is in Redis before a client sees it, so another gateway that takes the run in any
place reads the plan and the log, and continues with the next token.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

from services.errors import InternalError, ObjectNotFound, ObjectRefused
from services.gateway.jobs.events import Body, Event
from services.gateway.jobs.execution import Cancelled, Ending, Expired
from services.gateway.jobs.held import HeldJob
from services.gateway.models import ModelCatalog
from services.gateway.runs import endings, lifecycle
from services.gateway.runs.citations import next_search
from services.gateway.runs.documents import ended_step, with_calls
from services.gateway.runs.events import run_event, step_event
from services.gateway.runs.file_search import FileSearch
from services.gateway.runs.history import called_by, own_work, read_history
from services.gateway.runs.history_places import HistoryPlaces
from services.gateway.runs.job import Job
from services.gateway.runs.search_calls import Found, Search, StepNotes
from services.gateway.runs.transcript import Transcript, TranscriptWriter
from services.gateway.runs.turn_log import TurnLog, binding_of, used_by
from services.gateway.runs.turns import FullCall, HistoryEntry, TurnEnded, TurnEvent, TurnPlan, TurnRequest
from services.gateway.runs.writing import new_message_creations, run_writing
from services.gateway.search.attachments import Attachments
from services.gateway.store.changes import Operation
from services.gateway.store.kinds import MESSAGE, STEP, THREAD, Ref
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class RunServices:
    """Finished collaborators."""

    turn_log: TurnLog
    catalog: ModelCatalog
    search: FileSearch
    attachments: Attachments
    places: HistoryPlaces
    read_item: Callable[[str, Body], HistoryEntry | None]
    """Returns what runs of a project read of an item beside the messages of a thread."""


class RunWork:
    """The work on one run."""

    def __init__(self, held: HeldJob, services: RunServices) -> None:
        self._held = held
        self._services = services
        self._job = Job.from_bytes(held.private)
        self._said = Transcript()

    @property
    def held(self) -> HeldJob:
        """The run."""
        return self._held

    @property
    def _thread(self) -> Ref:
        return THREAD.ref(self.held.body["thread_id"])

    async def resume(self) -> None:
        """Read what the open turn has said, and learn the versions of its open objects.

        Of a run whose private state cannot be read it is not known where the turn begins: its open step is read.
        """
        held, is_unknown = self.held, self.held.private is None
        if self._job.plan is None and not is_unknown:
            return
        async for entry in held.entries(self._job.first_event - 1):
            if is_unknown and entry.name == "thread.run.step.created":
                self._said = Transcript()
            self._said.apply(entry.event)
        for kind, body in ((STEP, self._said.step), (MESSAGE, self._said.message)):
            if body is not None:
                held.learn(await held.jobs.objects.get(kind.ref(body["id"])))

    async def advance(self) -> None:
        """Make a turn: the run is complete then, met a limit, or waits for the outputs of its calls."""
        plan = self._job.plan
        if plan is None:
            async with self._services.places.place():
                plan = await self._begin()
        if plan is None:
            return
        ended = await self._services.turn_log.write(self.held, plan, self._said.token_ids, self._take)
        await self._finish(plan, ended)

    async def end(self, ending: Ending, *, is_patient: bool = True) -> None:
        """End the run wherever it stands."""
        run, now = self.held.body, self.held.now
        if isinstance(ending, Expired):
            events = endings.expired(run, self._job, self._said, now)
        elif isinstance(ending, Cancelled):
            events = endings.cancelled(run, self._job, self._said, now)
        else:
            events = endings.failed(run, self._job, self._said, now, error=ending.error)
        await self._commit(events, is_patient=is_patient)
        self._log_end()

    async def go_on(self, outputs: Sequence[tuple[str, str]]) -> None:
        """Give the run the outputs of its calls, by call id; it is queued then."""
        held, said = self.held, self._said
        if said.step is None or self._job.turn is None:
            raise InternalError(f"The run '{held.ref.id}' waits for outputs, but its calls are gone.")
        step = with_calls(said.step, said.calls, dict(outputs))
        ended = step_event(ended_step(step, "completed", held.now, usage=said.usage_of_step(self._job.turn)))
        await self._commit([ended, run_event(lifecycle.requeued(held.body))], self._job.next_turn(), is_patient=False)

    async def _begin(self) -> TurnPlan | None:
        """Decide how the next turn is made, and write it down; end the run if a limit forbids the turn."""
        held = self.held
        if self._job.waiting_messages:
            await self._add_messages()
        job, limit = self._job, held.body["max_completion_tokens"]
        if limit is not None and job.used.completion_tokens >= limit:
            await self._end_incomplete("max_completion_tokens")
            return None
        model = await self._services.catalog.resolve(held.body["model"])
        max_characters = model.tokenizer.max_characters
        read_item = partial(self._services.read_item, held.jobs.project)
        history = await read_history(
            held.jobs.objects, held.ref, self._thread, read_item, max_characters=max_characters
        )
        called: list[str] = []
        if history and history[-1].message_id is None:
            history[-1], called = replace(history[-1], binding=job.called), called_by(history[-1])
        used = job.used
        request = TurnRequest(held.body, history, used.prompt_tokens, used.completion_tokens, called)
        plan = await self._services.turn_log.turns.plan(request)
        if plan is None:
            await self._end_incomplete("max_prompt_tokens")
            return None
        self._said = Transcript()
        is_queued = held.body["status"] == "queued"
        events = [run_event(lifecycle.started(held.body, held.now))] if is_queued else []
        sources = {mark: file_id for entry in history for mark, file_id in entry.sources.items()}
        first_event = held.last_event + len(events) + 1
        await self._commit(events, replace(job, plan=plan, first_event=first_event, sources=sources))
        return plan

    async def _add_messages(self) -> None:
        """Add the messages that waited with the run for its turn, and the files that they bring."""
        held, bodies, job = self.held, self._job.waiting_messages, replace(self._job, waiting_messages=())
        creations = new_message_creations(self._thread, bodies)

        async def make(attaching: Sequence[Operation]) -> None:
            await held.commit(run_writing(held, (), job, further=[*creations, *attaching]))

        try:
            await self._services.attachments.bring(held.jobs.project, self._thread, bodies, make)
        except ObjectNotFound as error:
            raise ObjectRefused(f"The messages cannot be added: {error.message}") from error
        self._job = job

    def _writer(self, said: Transcript) -> TranscriptWriter:
        return TranscriptWriter(said, self.held.body, lambda: self.held.now, self._job.sources)

    async def _take(self, said: Sequence[TurnEvent]) -> None:
        if events := self._writer(self._said).events(said):
            await self._commit(events)

    async def _finish(self, plan: TurnPlan, ended: TurnEnded) -> None:
        held, said = self.held, deepcopy(self._said)  # what is not written down yet was not said
        writer = self._writer(said)
        closing = [*writer.events([ended]), *writer.opened_message()]
        job = replace(self._job, turn=used_by(plan, ended, len(said.token_ids)))
        if said.calls and ended.reason == "stop":
            found = await self._found(plan, said, ended.calls)
            job = replace(job, called=binding_of(plan, ended, said.token_ids))
            await self._commit_calls(job, said, [*closing, *writer.found(found)], found)
            return
        private = await self._private(plan, said, ended)
        if ended.reason == "length":
            events = endings.incomplete(held.body, job, said, held.now, reason="max_completion_tokens")
        else:
            events = endings.completed(held.body, job, said, held.now)
        await held.commit(run_writing(held, [*closing, *events], job, private=private))
        self._job = job
        self._log_end()

    async def _found(self, plan: TurnPlan, said: Transcript, calls: Sequence[FullCall]) -> dict[int, Found]:
        """Return what the searches among the calls found, by index."""
        held, wanted = self.held, [i for i, call in enumerate(said.calls) if call["type"] == "file_search"]
        if not wanted:
            return {}
        first = next_search(self._job.sources)
        searches = [Search(calls[index].arguments, first + place) for place, index in enumerate(wanted)]
        own = await own_work(held.jobs.objects, held.ref, self._thread)
        scope = await self._services.search.scope_of(held.jobs.project, held.body)
        found = await self._services.search.find(held.jobs.project, scope, plan.card_digest, searches, own.found)
        return dict(zip(wanted, found, strict=True))

    async def _commit_calls(
        self, job: Job, said: Transcript, events: Sequence[Event], found: Mapping[int, Found]
    ) -> None:
        """End a turn with calls: the run waits for the outputs of functions, if there are any."""
        held, step = self.held, said.step_with_calls
        assert step is not None and job.turn is not None
        notes = StepNotes({said.calls[index]["id"]: each for index, each in found.items()})
        private = {step["id"]: notes.to_bytes()} if found else {}
        if said.functions:
            waiting = run_event(lifecycle.needs_outputs(held.body, said.functions, job.total.usage))
            bodies = [(STEP.ref(step["id"]), step)]
            await held.commit(run_writing(held, [*events, waiting], job, bodies=bodies, private=private))
        else:
            ended = step_event(ended_step(step, "completed", held.now, usage=said.usage_of_step(job.turn)))
            job = job.next_turn()
            await held.commit(run_writing(held, [*events, ended], job, private=private))
            said.apply(ended)
        self._said, self._job = said, job

    async def _private(self, plan: TurnPlan, said: Transcript, ended: TurnEnded) -> dict[str, bytes]:
        """Return the token ids that are kept with the message."""
        message = said.message
        if message is None:
            return {}
        own = await own_work(self.held.jobs.objects, self.held.ref, self._thread)
        return {message["id"]: binding_of(plan, ended, said.token_ids, own.lead, own.sources).to_bytes()}

    async def _end_incomplete(self, reason: lifecycle.LimitReason) -> None:
        await self._commit(endings.incomplete(self.held.body, self._job, Transcript(), self.held.now, reason=reason))
        self._log_end()

    async def _commit(self, events: Sequence[Event], job: Job | None = None, *, is_patient: bool = True) -> None:
        await self.held.commit(run_writing(self.held, events, job), is_patient=is_patient)
        self._job = job or self._job

    def _log_end(self) -> None:
        _log.event("run.ended", run=self.held.ref.id, status=self.held.body["status"])
