"""Compacts a conversation: the last messages of the user as they are, and a summary that the model writes of it all.

Nothing is stored: the client keeps the summary, sealed, and sends it back in the place of what it stands for. A
conversation that does not fit into the context is summarised from its beginning, part by part, so that nothing is left
out: the summary of one part stands before the next.
"""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from services.errors import ContextLengthExceeded, PeerError
from services.gateway.jobs.events import Body
from services.gateway.models import ModelCatalog, ServedModel
from services.gateway.responses.history import ContextReader
from services.gateway.responses.items import (
    chat_message,
    compaction_item,
    message_item,
    new_item_id,
    summary_item,
)
from services.gateway.responses.planning import plan_response
from services.gateway.runs.history_places import HistoryPlaces
from services.gateway.runs.job import Used
from services.gateway.runs.turn_log import used_by
from services.gateway.runs.turns import HistoryEntry, TurnContext, TurnEnded, TurnPlan, Turns, Written
from services.gateway.sealing import Sealer
from services.gateway.text.threads import TextThreads
from services.telemetry.logs import get_logger

SUMMARY_SHARE = 8
"""An eighth of the context is the most that a summary may have."""
MAX_SUMMARY_TOKENS = 4096
MIN_SUMMARY_TOKENS = 128
"""What a summary may have of a conversation without words; of another, as many more as that has."""
KEPT_SHARE = 4
"""A fourth of the context is the most that the messages which stay as they are may have."""
MAX_PARTS = 16
"""Most parts that a conversation is summarised in."""
LEAST_CHARACTERS = 4_000_000
"""So many characters are read in any case, and more if the model's context may have room for them."""
_REQUEST = (
    "Write a summary of our conversation so far, for somebody who goes on with it in your place and reads nothing else "
    "of it. Tell what I want and which rules I gave; the facts, names, numbers and quotations that matter; what was "
    "decided and done, what tools returned, and what is left to do. Use at most {num_words} words. Write the summary "
    "only."
)
_REQUEST_ID = "compaction"

_log = get_logger(__name__)


@dataclass(frozen=True)
class Compacted:
    """What a conversation became."""

    output: Sequence[Body]
    """Items of input: messages of the user, then the compaction."""
    used: Used


class Compactor:
    """Compacts conversations."""

    def __init__(
        self,
        contexts: ContextReader,
        catalog: ModelCatalog,
        threads: TextThreads,
        turns: Turns,
        sealer: Sealer,
        places: HistoryPlaces,
    ) -> None:
        """``sealer`` makes what ``contexts`` opens."""
        self._contexts = contexts
        self._catalog = catalog
        self._threads = threads
        self._turns = turns
        self._sealer = sealer
        self._places = places

    async def compact(self, project: str, response: Body, items: Sequence[Body], deadline_s: float) -> Compacted:
        """Return what ``response`` would go on from, compacted.

        Args:
            project: whose conversation it is.
            response: its prompt, as ``prompt_json`` makes it.
            items: its input.
            deadline_s: on the clock's ``now``.

        Raises:
            InvalidRequest: the model refuses the conversation, or a part of it does not fit into the context.
            DeadlineExceeded: the deadline passed.
            Unavailable: nobody serves the model now.
            Overloaded: the gateway compacts too many other conversations.
            TandemError: no worker could go on, or the model wrote no summary.
        """
        async with self._places.place():
            return await self._compacted(project, response, items, deadline_s)

    async def _compacted(self, project: str, response: Body, items: Sequence[Body], deadline_s: float) -> Compacted:
        model = await self._catalog.resolve(response["model"])
        context = await self._contexts.read(project, response, items, least_characters=LEAST_CHARACTERS)
        if context.is_cut:
            raise _too_long("it has more characters than can be read at once")
        entries = context.entries
        kept = await self._threads.run(lambda: _kept_messages(model, entries))
        limit = await self._threads.run(lambda: _summary_limit(model, entries))
        # As the authors of the model advise, else with the likeliest words.
        temperature = None if "temperature" in model.card.generation_defaults else 0.0
        # What a plan leaves out for want of room is summarised apart.
        asked = {**response, "max_output_tokens": limit, "temperature": temperature, "truncation": "auto"}
        summarising = _Summarising(self._turns, TurnContext(project, response["id"], deadline_s), asked)
        summary = await summarising.summary_of(entries)
        _log.event("conversation.compacted", response=response["id"], tokens=summarising.used.completion_tokens)
        compaction = compaction_item(new_item_id("compaction"), self._sealer.seal(project, summary))
        return Compacted([*kept, compaction], summarising.used)


def _kept_messages(model: ServedModel, entries: Sequence[HistoryEntry]) -> list[Body]:
    """Return the last messages of the user, as many as have room; CPU work."""
    kept: list[Body] = []
    room = model.card.context_length // KEPT_SHARE
    for entry in reversed(entries):
        said = entry.messages[-1]
        if said["role"] != "user":
            continue
        text = str(said["content"])
        room -= _num_tokens(model, text)
        if room < 0:
            break
        item_id = entry.message_id or new_item_id("message")
        kept.append(message_item(item_id, "user", [{"type": "input_text", "text": text}]))
    return kept[::-1]


def _summary_limit(model: ServedModel, entries: Sequence[HistoryEntry]) -> int:
    """Return how many tokens a summary may have, which shall not be longer than a conversation; CPU work."""
    most = min(model.card.context_length // SUMMARY_SHARE, MAX_SUMMARY_TOKENS)
    limit = MIN_SUMMARY_TOKENS
    for message in (message for entry in entries for message in entry.messages):
        if limit >= most:
            break
        limit += _num_tokens(model, str(message["content"]))
    return min(limit, most)


def _num_tokens(model: ServedModel, text: str) -> int:
    """Return the tokens of a text; of one that is too long for the context in any case, its characters."""
    if len(text) > model.tokenizer.max_characters:
        return len(text)
    return len(model.tokenizer.raw.encode(text, add_special_tokens=False).ids)


class _Summarising:
    """The turns that summarise one conversation."""

    def __init__(self, turns: Turns, context: TurnContext, response: Body) -> None:
        self._turns = turns
        self._context = context
        self._response = response
        self.used = Used()

    async def summary_of(self, entries: Sequence[HistoryEntry], num_parts: int = 1) -> str:
        """Return a summary of a conversation, of which ``num_parts`` are known to be needed.

        Raises:
            ContextLengthExceeded: it needs too many, or one message does not fit.
        """
        plan, start = await self._plan(entries)
        if start:  # bindings begin a prompt where an earlier one did, and may leave no room for a summary before it
            entries = [replace(entry, binding=None) for entry in entries]
            plan, start = await self._plan(entries)
        if not start:
            return await self._written(plan)
        if len(entries) == 1:
            raise _too_long("one item has more than the context of this model has room for")
        if num_parts == MAX_PARTS:
            raise _too_long(f"the conversation would have to be read in more than {MAX_PARTS} parts")
        start = min(start, len(entries) - 1)
        earlier = await self.summary_of(entries[:start], num_parts + 1)
        return await self._summary_of_rest(earlier, entries[start:])

    async def _summary_of_rest(self, earlier: str, rest: Sequence[HistoryEntry]) -> str:
        """Return a summary of what is left of a conversation, whose beginning has one already."""
        item = summary_item(new_item_id("compaction"), earlier)
        lead = HistoryEntry(item["id"], (chat_message(item),))
        plan, start = await self._plan([lead, *rest])
        if start:
            raise _too_long("one item has more than this model's context has room for beside a summary")
        return await self._written(plan)

    async def _plan(self, entries: Sequence[HistoryEntry]) -> tuple[TurnPlan, int]:
        """Return how a summary is written, and where what fits into the context begins."""
        num_words = self._response["max_output_tokens"] // 2
        request = {"role": "user", "content": _REQUEST.format(num_words=num_words)}
        told = [*entries, HistoryEntry(_REQUEST_ID, (request,))]
        plan = await plan_response(self._turns, self._response, told)
        return plan, next((place for place, each in enumerate(told) if each.message_id == plan.first_message_id), 0)

    async def _written(self, plan: TurnPlan) -> str:
        """Return what the model writes; a summary that met its limit is one, too.

        Raises:
            PeerError: it wrote nothing.
        """
        texts: list[str] = []
        num_tokens = 0
        async with aclosing(self._turns.write(self._context, plan, ())) as events:
            async for event in events:
                num_tokens += len(event.token_ids)
                texts += (part.text for part in event.parts if isinstance(part, Written))
                if isinstance(event, TurnEnded):
                    self.used = self.used.plus(used_by(plan, event, num_tokens))
        summary = "".join(texts).strip()
        if not summary:
            raise PeerError("The model wrote no summary of the conversation. Try again, or leave out old items.")
        return summary


def _too_long(reason: str) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"The conversation cannot be compacted: {reason}. Leave out old items, or compact it in parts.",
        param="input",
    )
