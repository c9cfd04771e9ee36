"""The OpenAI endpoints."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.apis.openai.assistants.routes import assistants_routes
from services.gateway.apis.openai.chat import ChatCompletions
from services.gateway.apis.openai.completions import Completions
from services.gateway.apis.openai.embeddings import Embeddings
from services.gateway.apis.openai.files.routes import files_routes
from services.gateway.apis.openai.models import Models
from services.gateway.apis.openai.responses.routes import responses_routes
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.apis.openai.vector_stores.routes import vector_stores_routes
from services.gateway.web.replies import JsonReply


def openai_routes(services: OpenAIServices) -> APIRouter:
    """Return the routes under ``/v1``."""
    router = APIRouter(prefix="/v1")
    models = Models(services)

    async def timeline(request: Request) -> Response:
        """Return the timeline of a recent request of the caller's project."""
        exchange = await services.entrance.exchange(request)
        return JsonReply(await services.recorder.find(exchange.project, request.path_params["request_id"]))

    router.add_api_route("/chat/completions", ChatCompletions(services).create, methods=["POST"])
    router.add_api_route("/completions", Completions(services).create, methods=["POST"])
    router.add_api_route("/embeddings", Embeddings(services).create, methods=["POST"])
    router.add_api_route("/models", models.list, methods=["GET"])
    router.add_api_route("/models/{name:path}", models.get, methods=["GET"])
    router.add_api_route("/requests/{request_id}/timeline", timeline, methods=["GET"])
    router.include_router(assistants_routes(services))
    router.include_router(files_routes(services))
    router.include_router(vector_stores_routes(services))
    router.include_router(responses_routes(services))
    return router
