"""Turns made by the served models: admission, routing, replays and text as for any other answer."""

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from services.errors import ContextLengthExceeded
from services.gateway.admission.limits import Admission, Demand, Turn
from services.gateway.answering.choice_output import ChoiceOutput
from services.gateway.answering.generation import Generation, GenerationServices
from services.gateway.answering.observer import AnswerObserver
from services.gateway.answering.recorder import TimelineRecorder
from services.gateway.answering.sequence import Accepted, FinishReason, NewTokens, SequenceRequest
from services.gateway.models import ModelCatalog, ServedModel
from services.gateway.runs.form import turn_form
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.prompt import PromptBuilder, PromptRules
from services.gateway.runs.turn_output import TurnOutput
from services.gateway.runs.turns import TurnContext, TurnEvent, TurnPlan, TurnRequest
from services.gateway.text.threads import TextThreads
from services.gateway.tools.format import CallRules
from services.gateway.tools.use import Definition
from services.gateway.web.exchange import Exchange, open_exchange, token_in
from services.kv.card import ModelCard
from services.kv.sampling import SamplingParams

_SEED_BITS = 53  # numbers above change on their way through JavaScript
_OUTPUT_SHARE = 4
"""A fourth of the context is kept free for output that has no limit of its own."""


@dataclass(frozen=True)
class TurnServices:
    """Finished collaborators."""

    catalog: ModelCatalog
    threads: TextThreads
    admission: Admission
    generation: GenerationServices
    observer: AnswerObserver
    recorder: TimelineRecorder
    default_max_tokens: int


class ModelTurns:
    """Makes turns with the models of the cluster."""

    def __init__(self, services: TurnServices) -> None:
        self._services = services

    async def plan(self, request: TurnRequest) -> TurnPlan | None:
        """Return how the turn will be made; None if the conversation does not fit into ``max_prompt_tokens``.

        Raises:
            ContextLengthExceeded: it does not fit into the context of the model.
            InvalidRequest: the model refuses it, or a tool or format is not what it should be.
            ModelRefused: a tool that cannot be had here.
            Unavailable: nobody serves the model now.
        """
        run = request.run
        form = turn_form(run, request.called)
        model = await self._services.catalog.resolve(run["model"])
        rules, is_limited = _rules(request, model.card, form.definitions)
        builder = PromptBuilder(model, request.history, rules)
        prompt = await self._services.threads.run(builder.build) if rules.budget > 0 else None
        if prompt is None:
            if is_limited:
                return None
            limit = model.card.context_length
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens. However, the instructions and the last "
                f"message of the thread do not fit into the {rules.budget} tokens that are left for the prompt."
            )
        wanted = _remaining(run["max_completion_tokens"], request.used_completion_tokens)
        room = model.card.context_length - len(prompt.token_ids)
        max_tokens = min(room, self._services.default_max_tokens if wanted is None else wanted)
        sampling = {**_sampling_json(run, model.card, max_tokens), "grammar": form.grammar(model)}
        calls = form.calls(model)
        # What a run did not want to read is no reason for later ones to leave it out.
        budget = rules.budget if rules.last_messages is None else 0
        return prompt.plan(model.card_digest, sampling, budget, None if calls is None else calls.as_json)

    async def write(
        self, context: TurnContext, plan: TurnPlan, known_token_ids: Sequence[int]
    ) -> AsyncGenerator[TurnEvent, None]:
        """Yield what the model says after ``known_token_ids``, ending with ``TurnEnded``.

        Raises:
            DeadlineExceeded: the context's deadline passed.
            TandemError: no worker could go on.
        """
        services = self._services
        model = await services.catalog.version(plan.card_digest)
        sampling = _sampling_of(plan.sampling)
        exchange = self._exchange(context)
        request = _sequence(exchange, context, model, plan, sampling, known_token_ids)
        output = _output(model, plan, request)
        if output.has_stopped:
            yield output.ended("stop", 0, request.block_size)
            return
        demand = Demand(
            context.project,
            model.requirements.fingerprint,
            len(plan.prompt_ids) + len(known_token_ids),
            sampling.max_tokens - len(known_token_ids),
        )
        with services.recorder.recording(exchange):
            async with (
                services.admission.admitted(demand) as turn,
                aclosing(self._events(request, exchange, output, turn)) as events,
            ):
                async for event in events:
                    yield event

    async def _events(
        self, request: SequenceRequest, exchange: Exchange, output: TurnOutput, turn: Turn
    ) -> AsyncGenerator[TurnEvent, None]:
        generation = Generation(request, self._services.generation)
        reason: FinishReason = "stop"
        with self._services.observer.sequence(request, exchange, generation) as observed:
            async with aclosing(generation.events()) as events:
                async for event in events:
                    if isinstance(event, NewTokens):
                        if not observed.num_tokens:
                            turn.prefilled()
                        observed.tokens(len(event.tokens))
                        turn.generated(len(event.tokens))
                        if (said := output.push([token.token_id for token in event.tokens])) is not None:
                            yield said
                        if output.has_stopped:
                            break
                    elif not isinstance(event, Accepted):
                        reason = event.reason
            observed.ended(reason)
        cached_tokens = min(generation.proof.spared_tokens, len(request.prompt_token_ids))
        yield output.ended(reason, cached_tokens, request.block_size)

    def _exchange(self, context: TurnContext) -> Exchange:
        clock = self._services.generation.clock
        now_s = clock.now()
        return open_exchange(
            token_in(context.run_id), context.project, clock, started_s=now_s, timeout_s=context.deadline_s - now_s
        )


def _output(model: ServedModel, plan: TurnPlan, request: SequenceRequest) -> TurnOutput:
    """Return the output of a turn as far as it is known."""
    calls = None if plan.calls is None else CallRules.of_json(plan.calls)
    output = ChoiceOutput(model, request.sampling, (), calls)
    return TurnOutput(output, request.sampling.stop_token_ids, request.resumed_token_ids)


def _sequence(
    exchange: Exchange,
    context: TurnContext,
    model: ServedModel,
    plan: TurnPlan,
    sampling: SamplingParams,
    known_token_ids: Sequence[int],
) -> SequenceRequest:
    # A worker may still hold what another gateway asked for, so each attempt has its own name.
    return SequenceRequest(
        request_id=f"{context.run_id}.{secrets.token_hex(4)}",
        project=context.project,
        requirements=model.requirements,
        block_size=model.card.block_size,
        prompt_token_ids=plan.prompt_ids,
        sampling=sampling,
        deadline_s=exchange.deadline_s,
        timings_ms={},
        resumed_token_ids=tuple(known_token_ids),
    )


def _rules(request: TurnRequest, card: ModelCard, tools: Sequence[Definition]) -> tuple[PromptRules, bool]:
    """Return the rules of a prompt, and whether the run's own limit is what bounds it."""
    run = request.run
    # Not what is left of the limit: with the same budget, all turns of a thread leave out the same messages.
    reserved = min(card.context_length // _OUTPUT_SHARE, run["max_completion_tokens"] or card.context_length)
    budget = card.context_length - reserved
    limit = _remaining(run["max_prompt_tokens"], request.used_prompt_tokens)
    is_limited = limit is not None and limit < budget
    strategy = run["truncation_strategy"]
    last_messages = strategy["last_messages"] if strategy["type"] == "last_messages" else None
    rules = PromptRules(
        run["instructions"], limit if is_limited and limit is not None else budget, last_messages, tools
    )
    return rules, is_limited


def _remaining(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


def _sampling_json(run: Body, card: ModelCard, max_tokens: int) -> Mapping[str, Any]:
    """Return the sampling parameters as plain values; what the run leaves open is what the model's authors advise."""
    advised = card.generation_defaults
    values = {
        "temperature": run["temperature"] if run["temperature"] is not None else advised.get("temperature", 1.0),
        "top_p": run["top_p"] if run["top_p"] is not None else advised.get("top_p", 1.0),
        "top_k": max(int(advised.get("top_k", 0)), 0),
        "min_p": advised.get("min_p", 0.0),
        "repetition_penalty": advised.get("repetition_penalty", 1.0),
    }
    drawn = {"seed": secrets.randbits(_SEED_BITS), "max_tokens": max_tokens}
    return {**values, **drawn, "stop_token_ids": sorted(card.eos_token_ids)}


def _sampling_of(values: Mapping[str, Any]) -> SamplingParams:
    return SamplingParams(**{**values, "stop_token_ids": frozenset(values["stop_token_ids"])})
