"""One answer: every sequence that a request asks for, from prompt ids to text."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

from services.errors import InvalidRequest
from services.gateway.admission.limits import Admission, Demand, Turn
from services.gateway.answering.choice_output import ChoiceOutput, EndReason, OutputPiece
from services.gateway.answering.generation import Generation, GenerationServices
from services.gateway.answering.observer import AnswerObserver
from services.gateway.answering.proof import PathProof
from services.gateway.answering.sequence import Accepted, FinishReason, NewTokens, SequenceRequest
from services.gateway.models import ServedModel
from services.gateway.tools.format import CallRules
from services.gateway.web.exchange import Exchange
from services.gateway.web.merge import merged
from services.kv.sampling import SamplingParams


@dataclass(frozen=True)
class AnswerPlan:
    """What to generate: ``num_choices`` sequences for each prompt."""

    model: ServedModel
    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    num_choices: int = 1
    stops: tuple[str, ...] = ()
    priority: int = 0
    """Among the requests of the same project: lower goes first."""
    grammar_param: str = "response_format"
    """The field of the request that the grammar comes from."""
    calls: CallRules | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts; each counts once, however many answers it gets."""
        return sum(map(len, self.prompts))

    def demand(self, project: str) -> Demand:
        """Return what the answer asks of admission."""
        num_sequences = self.num_choices * len(self.prompts)
        return Demand(
            project,
            self.model.requirements.fingerprint,
            num_prompt_tokens=self.num_choices * self.num_prompt_tokens,
            max_output_tokens=num_sequences * self.sampling.max_tokens,
            num_sequences=num_sequences,
            priority=self.priority,
        )


@dataclass(frozen=True)
class Started:
    """A worker took the first sequence of the answer or a later one."""


@dataclass(slots=True)  # not frozen: one is made for each token, at four times the cost
class ChoicePiece:
    """More of one choice: text, or of a tool call."""

    index: int
    piece: OutputPiece


@dataclass(frozen=True)
class ChoiceEnd:
    """One choice is complete."""

    index: int
    reason: EndReason
    num_tokens: int
    proof: PathProof


AnswerEvent = Started | ChoicePiece | ChoiceEnd


class Answers:
    """Runs answer plans."""

    def __init__(self, admission: Admission, services: GenerationServices, observer: AnswerObserver) -> None:
        self._admission = admission
        self._services = services
        self._observer = observer

    def require_room(self, project: str) -> None:
        """Refuse a request before any work is done for it, if too many wait already.

        Raises:
            Overloaded: when to come back is in it.
        """
        self._admission.require_room(project)

    async def run(self, plan: AnswerPlan, exchange: Exchange) -> AsyncGenerator[AnswerEvent, None]:
        """Yield the events of all choices as they come; closing the generator cancels what still runs.

        Raises:
            TandemError: the first failure that no replay could mend.
        """
        async with self._admission.admitted(plan.demand(exchange.project)) as turn:
            gateway_ms = 1e3 * (self._services.clock.now() - exchange.started_s)
            exchange.timeline.add("gateway", start_ms=0.0, duration_ms=gateway_ms)
            choices = [
                self._choice(_sequence(plan, exchange, index, gateway_ms), plan, exchange, index=index, turn=turn)
                for index in range(len(plan.prompts) * plan.num_choices)
            ]
            async with aclosing(merged(choices)) as events:
                async for event in events:
                    yield event

    async def _choice(
        self, request: SequenceRequest, plan: AnswerPlan, exchange: Exchange, *, index: int, turn: Turn
    ) -> AsyncGenerator[AnswerEvent, None]:
        generation = Generation(request, self._services)
        output = ChoiceOutput(plan.model, request.sampling, plan.stops, plan.calls)
        reason: FinishReason = "stop"
        with _blaming(plan.grammar_param), self._observer.sequence(request, exchange, generation) as observed:
            async with aclosing(generation.events()) as events:
                async for event in events:
                    if isinstance(event, Accepted):
                        yield Started()
                    elif isinstance(event, NewTokens):
                        if not observed.num_tokens:
                            turn.prefilled()
                        observed.tokens(len(event.tokens))
                        turn.generated(len(event.tokens))
                        for piece in output.push(event.tokens):
                            yield ChoicePiece(index, piece)
                        if output.has_stopped:
                            break
                    else:
                        reason = event.reason
            for piece in output.finish():
                yield ChoicePiece(index, piece)
            observed.ended(reason)
        yield ChoiceEnd(index, output.end_reason(reason), output.num_tokens, generation.proof)


@contextmanager
def _blaming(param: str) -> Iterator[None]:
    """Name the field of the request in errors that workers raise about its grammar."""
    try:
        yield
    except InvalidRequest as error:
        if error.param != "grammar":
            raise
        raise InvalidRequest(error.message, param=param) from error


def _sequence(plan: AnswerPlan, exchange: Exchange, index: int, gateway_ms: float) -> SequenceRequest:
    prompt_index, choice_index = divmod(index, plan.num_choices)
    return SequenceRequest(
        request_id=f"{exchange.request_id}.{index}" if index else exchange.request_id,
        project=exchange.project,
        requirements=plan.model.requirements,
        block_size=plan.model.card.block_size,
        prompt_token_ids=plan.prompts[prompt_index],
        sampling=replace(plan.sampling, choice_index=choice_index),
        deadline_s=exchange.deadline_s,
        timings_ms={"gateway": gateway_ms},
    )
