"""Makes responses, cancels and deletes them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from services.errors import Conflict, InvalidRequest, JobEnded, TandemError, Unavailable
from services.gateway.jobs.events import Body, Event
from services.gateway.jobs.execution import Cancelled
from services.gateway.jobs.held import LeaseTerms
from services.gateway.jobs.operations import ClaimThread, RequireIdleThread
from services.gateway.jobs.service import Jobs, NewJob
from services.gateway.responses.documents import response_event
from services.gateway.responses.history import Context, ContextReader
from services.gateway.responses.items import thread_behind
from services.gateway.responses.planning import plan_response, with_sampling
from services.gateway.responses.state import ResponseState
from services.gateway.responses.work import sources_of
from services.gateway.runs.history_places import HistoryPlaces
from services.gateway.runs.job import Job
from services.gateway.runs.turns import TurnPlan, Turns
from services.gateway.store.changes import Create
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import INPUT_ITEM, RESPONSE, Ref
from services.gateway.store.object_store import ObjectStore

_MAX_ATTEMPTS = 20
"""Attempts to read a conversation and to claim it as it was read."""


@dataclass(frozen=True)
class ClaimConversation(ClaimThread):
    """Gives a conversation to a response that the same change creates."""

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return _locked() if problem == "active" else super().refusal(problem, detail)


@dataclass(frozen=True)
class RequireIdleConversation(RequireIdleThread):
    """Makes a change depend on that no job is active in a conversation."""

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return _locked() if problem == "active" else super().refusal(problem, detail)


@dataclass(frozen=True)
class ResponseServices:
    """Finished collaborators."""

    jobs: Jobs
    objects: ObjectStore
    contexts: ContextReader
    turns: Turns
    places: HistoryPlaces
    terms: LeaseTerms
    expiry_s: float
    """The longest life of a response that has not ended."""


class Responses:
    """What clients do with responses."""

    def __init__(self, services: ResponseServices) -> None:
        self._jobs = services.jobs
        self._objects = services.objects
        self._contexts = services.contexts
        self._turns = services.turns
        self._places = services.places
        self._terms = services.terms
        self._expiry_s = services.expiry_s

    async def create(self, project: str, response: Body, items: Sequence[Body]) -> Body:
        """Write a response and its input down and begin to work on it; return it.

        Raises:
            InvalidRequest: the model refuses the input, or another job has the conversation.
            ObjectNotFound: there is no such conversation.
            Unavailable: nobody serves the model now, and the response shall not wait in the background.
            Overloaded: the gateway reads too many other conversations.
        """
        await self._objects.register(project)
        for _ in range(_MAX_ATTEMPTS):
            async with self._places.place():
                context, plan = await self._planned(project, response, items)
            new = self._new_job(with_sampling(response, plan) if plan else response, items, context, plan)
            try:
                await self._jobs.create(project, new)
            except Conflict as error:  # something was added to the conversation since it was read
                conflict = error
            else:
                return new.body
        raise conflict

    async def count_tokens(self, project: str, response: Body, items: Sequence[Body]) -> int:
        """Return how many tokens the prompt of a response would have.

        Raises:
            InvalidRequest: the model refuses the input.
            ObjectNotFound: there is no such conversation.
            Unavailable: nobody serves the model now.
            Overloaded: the gateway reads too many other conversations.
        """
        async with self._places.place():
            context = await self._contexts.read(project, response, items)
            plan = await plan_response(self._turns, response, context.entries, is_cut=context.is_cut)
        return len(plan.prompt_ids)

    async def cancel(self, project: str, ref: Ref) -> Body:
        """End a response in the background wherever it stands; return it, also if it has ended before.

        Raises:
            InvalidRequest: it is none in the background.
            ObjectNotFound: there is no such response.
        """
        record = await self._objects.of(project).get(ref)
        if not record.body["background"]:
            raise InvalidRequest("Cannot cancel a synchronous response.")
        try:
            return (await self._jobs.end(project, ref, Cancelled()))[1]
        except JobEnded:
            return (await self._objects.of(project).get(ref)).body

    async def delete(self, project: str, ref: Ref) -> None:
        """Delete a response; one that is being worked on ends first, so that its conversation is free again.

        Raises:
            ObjectNotFound: there is no such response.
        """
        with suppress(JobEnded):
            await self._jobs.end(project, ref, Cancelled())
        await self._objects.of(project).delete(ref)

    async def _planned(self, project: str, response: Body, items: Sequence[Body]) -> tuple[Context, TurnPlan | None]:
        """Return what was before, and how the turn is made; no plan if it has to wait for the model."""
        context = await self._contexts.read(project, response, items)
        try:
            return context, await plan_response(self._turns, response, context.entries, is_cut=context.is_cut)
        except Unavailable:
            if not response["background"]:
                raise
            return context, None

    def _new_job(self, response: Body, items: Sequence[Body], context: Context, plan: TurnPlan | None) -> NewJob:
        ref, thread = RESPONSE.ref(response["id"]), thread_behind(response)
        claim = None if thread is None else ClaimConversation(thread, ref, last_child=context.last_child)
        # What is gone on from is kept as long as what goes on from it.
        kept_until = int(self._terms.clock.wall() + self._expiry_s + self._terms.retention_s)
        return NewJob(
            ref,
            response,
            ResponseState(Job(plan=plan, sources=sources_of(context.entries))).to_bytes(),
            _first_events(response),
            self._terms.now_ms + round(1e3 * self._expiry_s),
            claim=claim,
            after=[
                *(Create(INPUT_ITEM.ref(item["id"]), item, ref) for item in items),
                *(ExpireAt(ancestor, kept_until) for ancestor in context.ancestors),
            ],
        )


def _first_events(response: Body) -> list[Event]:
    return [response_event(response, "created"), response_event(response)]


def _locked() -> InvalidRequest:
    return InvalidRequest(
        "Another process is currently operating on this conversation. Please retry in a few seconds.",
        code="conversation_locked",
    )
