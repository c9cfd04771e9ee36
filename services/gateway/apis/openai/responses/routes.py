"""The routes of responses and conversations."""

from fastapi import APIRouter

from services.gateway.apis.openai.responses.compact import CompactionEndpoint
from services.gateway.apis.openai.responses.conversations import Conversations
from services.gateway.apis.openai.responses.responses import ResponseEndpoints
from services.gateway.apis.openai.service import OpenAIServices


def responses_routes(services: OpenAIServices) -> APIRouter:
    """Return the routes, without ``/v1``."""
    router = APIRouter()
    responses, conversations = ResponseEndpoints(services), Conversations(services)
    one = "/responses/{response_id}"
    router.add_api_route("/responses", responses.create, methods=["POST"])
    router.add_api_route("/responses/input_tokens", responses.input_tokens, methods=["POST"])
    router.add_api_route("/responses/compact", CompactionEndpoint(services).create, methods=["POST"])
    router.add_api_route(one, responses.get, methods=["GET"])
    router.add_api_route(one, responses.delete, methods=["DELETE"])
    router.add_api_route(f"{one}/cancel", responses.cancel, methods=["POST"])
    router.add_api_route(f"{one}/input_items", responses.input_items, methods=["GET"])
    one = "/conversations/{conversation_id}"
    router.add_api_route("/conversations", conversations.create, methods=["POST"])
    router.add_api_route(one, conversations.get, methods=["GET"])
    router.add_api_route(one, conversations.modify, methods=["POST"])
    router.add_api_route(one, conversations.delete, methods=["DELETE"])
    router.add_api_route(f"{one}/items", conversations.create_items, methods=["POST"])
    router.add_api_route(f"{one}/items", conversations.list_items, methods=["GET"])
    router.add_api_route(f"{one}/items/{{item_id}}", conversations.get_item, methods=["GET"])
    router.add_api_route(f"{one}/items/{{item_id}}", conversations.delete_item, methods=["DELETE"])
    return router
