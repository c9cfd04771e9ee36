"""The served models: from a name to a card, a tokenizer and a template."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Protocol

from services.cluster.registry import Member, Role
from services.cluster.view import MembershipChange
from services.errors import IntegrityError, InvalidRequest, ModelNotFound, NoDecodeWorker, NotFound, TandemError
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.revisions import Revision, drawn, heaviest, revisions_of
from services.gateway.text.meter import RenderLimits
from services.gateway.text.template import ChatTemplate
from services.gateway.text.threads import TextThreads
from services.gateway.text.tokenizer import Messages, ModelTokenizer, Piece, Render
from services.gateway.tools.format import ToolFormat
from services.gateway.tools.formats import DEFAULT, format_named, format_of
from services.gateway.tools.prompt import told_in_messages, with_names, with_short_ids
from services.kv.card import ModelCard
from services.rpc.versions import understands
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

MAX_LOADED_MODELS = 16
_SHIELD_GROWTH = 16
"""How much longer a text may be while placeholders stand for the markers in it."""

_log = get_logger(__name__)


class ClusterView(Protocol):
    """What the gateway asks of ``services.cluster.view.MemberView``."""

    @property
    def is_stale(self) -> bool:
        """Whether the members are the last known ones, not the present ones."""

    def members(self) -> Sequence[Member]:
        """Return the last known members."""

    async def card(self, digest: str) -> ModelCard:
        """Return the card published under ``digest``."""

    def changes(self) -> AsyncIterator[MembershipChange]:
        """Yield who came and went."""


@dataclass(frozen=True)
class ServedModel:
    """One version of a model: everything that a request needs before and after its tokens."""

    card: ModelCard
    tokenizer: ModelTokenizer
    template: ChatTemplate | None
    requirements: Requirements
    tool_format: ToolFormat
    tells_tools: bool
    """Whether the template tells the model of tools in that format; else plain messages do."""

    @cached_property
    def card_digest(self) -> str:
        """The name of the card in the store; it takes a while to compute."""
        return self.card.digest

    @property
    def system_fingerprint(self) -> str:
        """Short name of the layout; answers with the same one and the same seed are equal."""
        return f"fp_{self.card.fingerprint[:12]}"

    def encode_conversation(self, messages: Messages, tools: Messages = ()) -> list[int]:
        """Return the prompt ids of a conversation with tools, ready for the assistant's turn; CPU work.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the messages.
        """
        return self.tokenizer.encode_conversation(*self._told(messages, tools))

    def render_conversation(self, messages: Messages, tools: Messages = ()) -> list[Piece]:
        """Return the text of the same prompt, each piece with whether it is to be encoded as ordinary text.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the messages.
        """
        return self.tokenizer.render_conversation(*self._told(messages, tools))

    def _told(self, messages: Messages, tools: Messages) -> tuple[Messages, Render, Messages]:
        """Return messages and tools as the template, which comes between them, is to be told of them."""
        render = self._chat_template().render
        if not self.tells_tools:
            return told_in_messages(messages, tools), render, ()
        messages = with_names(messages)
        if (id_length := self.tool_format.syntax.id_length) is not None:
            messages = with_short_ids(messages, id_length)
        return messages, render, tools

    def _chat_template(self) -> ChatTemplate:
        """Return the template of the model.

        Raises:
            InvalidRequest: it has none.
        """
        if self.template is None:
            raise InvalidRequest(
                f"The model '{self.card.model_name}' has no chat template; use /v1/completions.", param="model"
            )
        return self.template


@dataclass(frozen=True)
class ListedModel:
    """A model that clients may name."""

    name: str
    created: int
    context_length: int


class ModelCatalog:
    """Finds models by name among the decode workers; loads each card's text tools once."""

    def __init__(
        self,
        view: ClusterView,
        threads: TextThreads,
        clock: Clock,
        random: Random,
        *,
        protocol_version: int,
        aliases: Mapping[str, str],
        tool_formats: Mapping[str, str] | None = None,
    ) -> None:
        """``aliases`` are further names of models; a served model's own name goes before an alias.

        ``tool_formats`` names, by model, formats that do not follow from the chat template.
        """
        self._view = view
        self._threads = threads
        self._clock = clock
        self._random = random
        self._protocol_version = protocol_version
        self._aliases = aliases
        self._tool_formats = tool_formats or {}
        self._loaded: dict[str, ServedModel] = {}
        self._loading = asyncio.Lock()
        self._seen: set[str] = set()
        self._unreadable: set[str] = set()
        """Digests of cards that were left out of the list and logged."""

    async def resolve(self, name: str) -> ServedModel:
        """Return a version of ``name``; with several up, each as often as its scarcer role allows.

        Raises:
            ModelNotFound: no worker ever served it here.
            NoDecodeWorker: it is known, but nobody decodes it now.
            StateUnavailable: its card was never read and Redis cannot be reached.
        """
        name = self._served_name(name)
        revision = drawn(self._revisions(name), self._random)
        if revision is None:
            raise self._absent(name)
        return await self._load(revision.card_digest)

    async def version(self, card_digest: str) -> ServedModel:
        """Return the version of a model with this card, whoever serves it now.

        Raises:
            NotFound: no such card was ever published.
            StateUnavailable: it was never read and Redis cannot be reached.
        """
        return await self._load(card_digest)

    async def listed(self) -> list[ListedModel]:
        """Return all models with a decode worker and a readable card, by name, and their aliases.

        Raises:
            StateUnavailable: a card was never read and Redis cannot be reached.
        """
        revisions = [heaviest(self._revisions(name)) for name in sorted(self._names())]
        digests = [revision.card_digest for revision in revisions if revision is not None]
        self._unreadable.intersection_update(digests)
        cards = [card for digest in digests if (card := await self._readable_card(digest)) is not None]
        models = [ListedModel(card.model_name, card.created, card.context_length) for card in cards]
        return sorted([*models, *self._alias_models(models)], key=lambda model: model.name)

    async def follow(self) -> None:
        """Load the text tools of models as their workers come, until cancelled."""
        async for change in self._view.changes():
            self._seen.update(member.model_name for member in change.joined)
            for digest in {member.card_digest for member in change.joined if member.role is Role.DECODE}:
                await self._preload(digest)

    def _served_name(self, name: str) -> str:
        return name if name in self._names() else self._aliases.get(name, name)

    def _alias_models(self, models: Sequence[ListedModel]) -> list[ListedModel]:
        by_name = {model.name: model for model in models}
        return [
            replace(by_name[target], name=alias)
            for alias, target in self._aliases.items()
            if target in by_name and alias not in by_name
        ]

    async def _readable_card(self, digest: str) -> ModelCard | None:
        try:
            card = await self._view.card(digest)
        except (NotFound, IntegrityError) as error:
            if digest not in self._unreadable:
                self._unreadable.add(digest)
                _log.warning("model.not_listed", card=digest, reason=error.message)
            return None
        self._unreadable.discard(digest)
        return card

    def _revisions(self, name: str) -> list[Revision]:
        return revisions_of(self._view.members(), name, self._protocol_version)

    def _absent(self, name: str) -> TandemError:
        is_known = name in self._seen or any(member.model_name == name for member in self._view.members())
        if is_known or not self._decoders():
            return NoDecodeWorker(f"No decode worker serves the model '{name}' now.")
        return ModelNotFound(f"The model '{name}' does not exist or you do not have access to it.", param="model")

    def _names(self) -> set[str]:
        return {member.model_name for member in self._decoders()}

    def _decoders(self) -> list[Member]:
        return [
            member
            for member in self._view.members()
            if member.role is Role.DECODE and understands(member.protocol_version, self._protocol_version)
        ]

    async def _preload(self, digest: str) -> None:
        try:
            await self._load(digest)
        except TandemError as error:  # told again to whoever asks for the model
            _log.warning("model.not_loaded", card=digest, reason=error.message)

    async def _load(self, digest: str) -> ServedModel:
        if (model := self._loaded.get(digest)) is not None:
            return model
        async with self._loading:
            if digest not in self._loaded:
                card = await self._view.card(digest)
                model = await self._threads.run(lambda: self._build(card))
                self._keep(digest, model)
                _log.event("model.loaded", model=card.model_name, card=digest, fingerprint=card.fingerprint)
        return self._loaded[digest]

    def _keep(self, digest: str, model: ServedModel) -> None:
        self._loaded[digest] = model
        self._seen.add(model.card.model_name)
        while len(self._loaded) > MAX_LOADED_MODELS:
            del self._loaded[next(iter(self._loaded))]

    def _build(self, card: ModelCard) -> ServedModel:
        tokenizer, template = ModelTokenizer(card), None
        if card.chat_template is not None:
            limits = RenderLimits(_SHIELD_GROWTH * tokenizer.max_characters, timeout_s=self._threads.timeout_s)
            template = ChatTemplate(card.chat_template, card.special_tokens, self._clock, limits)
        requirements = Requirements(card.fingerprint, self._protocol_version)
        chosen = self._tool_formats.get(card.model_name)
        tool_format = format_named(chosen) if chosen is not None else format_of(card.chat_template or "")
        tells_tools = tool_format is not None and template is not None and template.knows_tools
        return ServedModel(card, tokenizer, template, requirements, tool_format or DEFAULT, tells_tools)
