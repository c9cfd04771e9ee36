"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

import builtins
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.errors import ModelNotFound
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.models import ListedModel
from services.gateway.web.replies import JsonReply


class Models:
    """Tells which models are served."""

    def __init__(self, services: OpenAIServices) -> None:
        self._services = services

    async def list(self, request: Request) -> Response:
        """Return all models: those that answer, then those that embed."""
        await self._services.entrance.exchange(request)
        return JsonReply({"object": "list", "data": [_json(model) for model in await self._listed()]})

    async def get(self, request: Request) -> Response:
        """Return one model; its id may contain slashes."""
        await self._services.entrance.exchange(request)
        name = request.path_params["name"]
        for model in await self._listed():
            if model.name == name:
                return JsonReply(_json(model))
        raise ModelNotFound(f"The model '{name}' does not exist or you do not have access to it.", param="model")

    async def _listed(self) -> builtins.list[ListedModel]:
        models = await self._services.catalog.listed()
        known = {model.name for model in models}
        cards = await self._services.files.embeddings.cards()
        embedding = [ListedModel(card.model_name, card.created, card.context_length) for card in cards]
        return [*models, *(model for model in embedding if model.name not in known)]


def _json(model: ListedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tandem",
        "max_model_len": model.context_length,
    }
