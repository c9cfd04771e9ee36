"""From a conversation to the token ids of a prompt: which messages fit, and which ids are known already.

Truncation moves rarely and far. A prompt that outgrows its budget is cut to three quarters of it, and the next prompts
begin with the same message until they outgrow the budget again; so most prompts continue the one before them, and its
KV is reused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from services.errors import ContextLengthExceeded
from services.gateway.models import ServedModel
from services.gateway.runs.binding import Binding, Rendering, context_ids
from services.gateway.runs.turns import ChatMessage, HistoryEntry, TurnPlan, is_text_of_model

KEPT_NUMERATOR, KEPT_DENOMINATOR = 3, 4
_MESSAGE_TOKENS = 8
"""What a template adds to a message, about."""


@dataclass(frozen=True)
class PromptRules:
    """How a prompt is made."""

    instructions: str
    budget: int
    """Most tokens."""
    last_messages: int | None
    """How many messages of the thread may be in it; None for as many as fit."""
    tools: Sequence[Mapping[str, Any]] = ()
    """What the model is told of."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and where it comes from."""

    token_ids: tuple[int, ...]
    rendering: Rendering
    base: str | None
    """The message whose context it begins with."""
    num_base_tokens: int
    first_message_id: str | None

    def plan(
        self,
        card_digest: str,
        sampling: Mapping[str, Any],
        budget: int,
        calls: Mapping[str, Any] | None = None,
    ) -> TurnPlan:
        """Return the plan of the turn that continues the prompt."""
        text = self.rendering.text
        return TurnPlan(
            card_digest=card_digest,
            prompt_ids=self.token_ids,
            sampling=sampling,
            base=self.base,
            num_base_tokens=self.num_base_tokens,
            prompt_chars=len(text),
            prompt_digest=self.rendering.digest(len(text)),
            first_message_id=self.first_message_id,
            budget=budget,
            calls=calls,
        )


@dataclass(frozen=True)
class _Known:
    """Ids that a prompt begins with."""

    token_ids: tuple[int, ...]
    end: int
    """Where the canonical text goes on behind them."""
    base: str | None
    """The message whose context they begin with, which they may be the whole of."""
    num_base_tokens: int


class PromptBuilder:
    """Makes the prompts of one conversation; CPU work."""

    def __init__(self, model: ServedModel, history: Sequence[HistoryEntry], rules: PromptRules) -> None:
        self._model = model
        self._history = history
        self._rules = rules
        self._bindings: dict[str, Binding] = {
            entry.message_id: entry.binding
            for entry in history
            if entry.message_id is not None and entry.binding is not None
        }

    def build(self) -> Prompt | None:
        """Return the prompt; None if not even the last message fits.

        Raises:
            InvalidRequest: the model's template refuses the conversation.
        """
        start = self._first_start()
        prompt = self._prompt(start)
        if prompt is None:
            start = self._start_within(KEPT_NUMERATOR * self._rules.budget // KEPT_DENOMINATOR, start + 1)
            while (prompt := self._prompt(start)) is None and start < self._last_start:
                start = self._user_start(start + 1)
        return prompt

    @property
    def _last_start(self) -> int:
        """The last place where a prompt may begin: the last message of the thread is always in it."""
        return self._message_places[-1] if self._message_places else 0

    @cached_property
    def _message_places(self) -> Sequence[int]:
        """Where the messages of the thread are: not what the run did, and not words of the developer beside them."""
        return [
            index
            for index, entry in enumerate(self._history)
            if entry.message_id is not None and entry.messages[-1]["role"] != "system"
        ]

    def _first_start(self) -> int:
        """Return where the prompt before began, unless it had less room; else the earliest place allowed."""
        start = 0
        if self._rules.last_messages is not None:
            places = self._message_places
            start = places[-self._rules.last_messages] if len(places) > self._rules.last_messages else 0
        latest = next((e.binding for e in reversed(self._history) if e.binding is not None), None)
        if latest is None or latest.budget < self._rules.budget:
            return start
        ids = [entry.message_id for entry in self._history]
        return max(start, ids.index(latest.first_message_id)) if latest.first_message_id in ids else start

    def _start_within(self, num_tokens: int, least: int) -> int:
        """Return the earliest place from ``least`` on whose messages have about ``num_tokens`` at most."""
        tools = "".join(map(_json, self._rules.tools))
        room = num_tokens - self._num_tokens(self._rules.instructions) - self._num_tokens(tools)
        start = len(self._history)
        while start > least:
            texts = (_text(message) for message in self._history[start - 1].messages)
            room -= sum(self._num_tokens(text) + _MESSAGE_TOKENS for text in texts)
            if room < 0:
                break
            start -= 1
        return self._user_start(min(start, self._last_start))

    def _num_tokens(self, text: str) -> int:
        return len(self._model.tokenizer.raw.encode(text, add_special_tokens=False).ids)

    def _user_start(self, start: int) -> int:
        """Return the first place from ``start`` on where the user speaks, as many templates begin so."""
        for index in range(start, self._last_start):
            if self._history[index].messages[0]["role"] == "user":
                return index
        return self._last_start

    def _prompt(self, start: int) -> Prompt | None:
        """Return the prompt that begins with a place of the history; None if it is over its budget."""
        entries = self._history[start:]
        messages = [message for entry in entries for message in entry.messages]
        if self._rules.instructions:
            messages.insert(0, {"role": "system", "content": self._rules.instructions})
        try:
            rendering = Rendering(self._model.render_conversation(messages, self._rules.tools))
        except ContextLengthExceeded:  # too long to be rendered, whatever its tokens
            return None
        if len(rendering.text) > self._model.tokenizer.max_characters:
            return None
        token_ids, base, num_base_tokens = self._encoded(entries, rendering)
        if len(token_ids) > self._rules.budget:
            return None
        return Prompt(token_ids, rendering, base, num_base_tokens, entries[0].message_id if entries else None)

    def _encoded(
        self, entries: Sequence[HistoryEntry], rendering: Rendering
    ) -> tuple[tuple[int, ...], str | None, int]:
        """Return the ids, the message whose context they begin with, and how many of them that is."""
        encode = self._model.tokenizer.encode_pieces
        for entry in reversed(entries):
            if entry.binding is None:
                continue
            known = self._known(entry, entry.binding, rendering)
            if known is not None and (tail := rendering.behind(known.end)) is not None:
                return (*known.token_ids, *encode(tail)), known.base, known.num_base_tokens
            if _ends_with_text(entry):
                break  # an older answer is the base of this one: if this one does not match, none is worth the search
        return tuple(encode(rendering.pieces)), None, 0

    def _known(self, entry: HistoryEntry, binding: Binding, rendering: Rendering) -> _Known | None:
        """Return the context of an answer, or of a turn that called, if the text begins with it."""
        if binding.card_digest != self._model.card_digest:
            return None
        if _ends_with_text(entry):
            said = str(entry.messages[-1]["content"])
        else:  # a template may write calls otherwise than the model did
            said = self._model.tokenizer.raw.decode(list(binding.output_ids), skip_special_tokens=False)
        end = rendering.continues(binding, said)
        base_ids = () if binding.base is None else context_ids(binding.base, self._bindings)
        if end is None or base_ids is None:
            return None
        token_ids = (*base_ids, *binding.tail_ids, *binding.output_ids)
        if entry.message_id is not None:
            return _Known(token_ids, end, entry.message_id, len(token_ids))
        return _Known(token_ids, end, binding.base, len(base_ids))


def _ends_with_text(entry: HistoryEntry) -> bool:
    """Return whether the turn whose ids an entry has ended with a text, which is all that is rendered of it."""
    return entry.message_id is not None and is_text_of_model(entry.messages[-1])


def _text(message: ChatMessage) -> str:
    """Return about what a template makes of a message."""
    calls = message.get("tool_calls") or ()
    return str(message.get("content") or "") + "".join(_json(call["function"]) for call in calls)


def _json(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()
