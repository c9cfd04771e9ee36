"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.errors import ModelNotFound
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.models import ListedModel
from services.gateway.replies import JsonReply


class Models:
    """Tells which models are served."""

    def __init__(self, services: OpenAIServices) -> None:
        self._services = services

    async def list(self, request: Request) -> Response:
        """Return all models."""
        await self._services.entrance.exchange(request)
        models = await self._services.catalog.listed()
        return JsonReply({"object": "list", "data": [_json(model) for model in models]})

    async def get(self, request: Request) -> Response:
        """Return one model; its id may contain slashes."""
        await self._services.entrance.exchange(request)
        name = request.path_params["name"]
        for model in await self._services.catalog.listed():
            if model.name == name:
                return JsonReply(_json(model))
        raise ModelNotFound(f"The model '{name}' does not exist or you do not have access to it.", param="model")


def _json(model: ListedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tandem",
        "max_model_len": model.context_length,
    }
