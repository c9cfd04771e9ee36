"""What a gateway does with a response that it holds.

    queued --- plan the turn, write it down ---> in_progress --- write what the model says, batch by batch ---> the end

The end is one change: the response, its last events, and what it adds to its conversation.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from services.errors import DeadlineExceeded, ObjectNotFound
from services.gateway.jobs.events import Body, Event
from services.gateway.jobs.execution import Cancelled, Ending, Expired, Failed
from services.gateway.jobs.held import HeldJob, Writing
from services.gateway.responses import documents
from services.gateway.responses.documents import response_event
from services.gateway.responses.history import read_context, read_items
from services.gateway.responses.items import CONVERSATION, creation, thread_of
from services.gateway.responses.planning import plan_response, with_sampling
from services.gateway.responses.state import ResponseState
from services.gateway.responses.transcript import Transcript, TranscriptWriter
from services.gateway.runs.job import Job, Used
from services.gateway.runs.turn_log import TurnLog, binding_of, used_by
from services.gateway.runs.turns import Said, TurnEnded, TurnPlan
from services.gateway.store.changes import Operation
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import Ref
from services.telemetry.logs import get_logger

UNSTORED_S = 60
"""How long a response is kept that shall not be stored, if whoever asked for it does not remove it."""

_log = get_logger(__name__)


class ResponseWork:
    """The work on one response."""

    def __init__(self, held: HeldJob, turn_log: TurnLog) -> None:
        self._held = held
        self._turn_log = turn_log
        self._state = ResponseState.from_bytes(held.private)
        self._said = Transcript()

    @property
    def held(self) -> HeldJob:
        """The response."""
        return self._held

    @property
    def _thread(self) -> Ref | None:
        conversation = self.held.body["conversation"]
        return None if conversation is None else thread_of(CONVERSATION.ref(conversation["id"]))

    async def resume(self) -> None:
        """Read what the response has said."""
        position = self._state.job.first_event - 1
        while entries := await self.held.jobs.read(self.held.ref, position):
            for entry in entries:
                self._said.apply(entry.event)
            position = entries[-1].number

    async def advance(self) -> None:
        """Take a response that is queued to its turn, or make the turn."""
        if self._state.job.plan is None:
            await self._plan()
        if self.held.body["status"] == "queued":
            body = documents.started(self.held.body)
            await self.held.commit(Writing([response_event(body)], body))
        plan = self._state.job.plan
        assert plan is not None
        ended = await self._turn_log.write(self.held, plan, self._said.token_ids, self._take)
        try:
            await self._finish(plan, ended)
        except ObjectNotFound as error:  # its conversation was deleted
            await self.end(Failed(error))

    async def end(self, ending: Ending, *, is_patient: bool = True) -> None:
        """End the response wherever it stands; what it said so far stays."""
        closing = TranscriptWriter(self._said).closing("incomplete")
        job = self._cut()
        body, output = self.held.body, self._said.output
        if isinstance(ending, Cancelled):
            ended = documents.cancelled(body, output, job.total)
        else:
            error = DeadlineExceeded("The response took too long.") if isinstance(ending, Expired) else ending.error
            ended = documents.failed(body, output, job.total, error)
        await self._end(closing, ended, replace(self._state, job=job), is_patient=is_patient)

    async def _plan(self) -> None:
        held = self.held
        items = await read_items(held.jobs.objects, held.ref)
        context = await read_context(held.jobs.objects, held.body, self._thread, items)
        plan = await plan_response(self._turn_log.turns, held.body, context.entries)
        state = replace(self._state, job=replace(self._state.job, plan=plan))
        await held.commit(Writing((), with_sampling(held.body, plan), state.to_bytes()))
        self._state = state

    async def _take(self, said: Sequence[Said]) -> None:
        if events := TranscriptWriter(self._said).events(said):
            await self.held.commit(Writing(events))

    async def _finish(self, plan: TurnPlan, ended: TurnEnded) -> None:
        said, is_whole = deepcopy(self._said), ended.reason == "stop"  # what is not written down yet was not said
        writer = TranscriptWriter(said)
        closing = [*writer.events([ended]), *writer.closing("completed" if is_whole else "incomplete")]
        job = replace(self._state.job, turn=used_by(plan, ended, len(said.token_ids)))
        body, output = self.held.body, said.output
        if is_whole:
            shown = documents.completed(body, output, job.total, self.held.now)
        else:
            shown = documents.incomplete(body, output, job.total)
        binding = binding_of(plan, ended, said.token_ids) if _is_answer(output) else None
        state = ResponseState(job, binding)
        await self._end(closing, shown, state, await self._additions(output, state))

    async def _additions(self, output: Sequence[Body], state: ResponseState) -> list[Operation]:
        """Return what the response adds to its conversation."""
        if (thread := self._thread) is None:
            return []
        items = await read_items(self.held.jobs.objects, self.held.ref)
        bound = {output[-1]["id"]: state.binding.to_bytes()} if state.binding is not None else {}
        return [creation(item, thread, self.held.now, bound.get(item["id"])) for item in (*items, *output)]

    async def _end(
        self,
        closing: Sequence[Event],
        ended: Body,
        state: ResponseState,
        additions: Sequence[Operation] = (),
        *,
        is_patient: bool = True,
    ) -> None:
        kept_s = round(self.held.terms.retention_s) if ended["store"] else UNSTORED_S
        further = [*additions, ExpireAt(self.held.ref, self.held.now + kept_s)]
        writing = Writing([*closing, response_event(ended)], ended, state.to_bytes(), further=further)
        await self.held.commit(writing, is_patient=is_patient)
        _log.event("response.ended", response=self.held.ref.id, status=ended["status"])

    def _cut(self) -> Job:
        """Return the job with its turn ended where it stands."""
        job, said = self._state.job, self._said
        if job.plan is None or job.turn is not None:
            return job
        num_prompt_tokens = len(job.plan.prompt_ids) if said.token_ids else 0
        return replace(job, turn=Used(num_prompt_tokens, len(said.token_ids)))


def _is_answer(output: Sequence[Body]) -> bool:
    """Return whether the tokens of the output are those of one message."""
    return len(output) == 1 and output[0]["type"] == "message"
