"""The routes of the Assistants API. The header ``OpenAI-Beta`` is not asked for, whatever it says."""

from fastapi import APIRouter

from services.gateway.apis.openai.assistants.assistants import Assistants
from services.gateway.apis.openai.assistants.messages import Messages
from services.gateway.apis.openai.assistants.threads import Threads
from services.gateway.apis.openai.service import OpenAIServices


def assistants_routes(services: OpenAIServices) -> APIRouter:
    """Return the routes of assistants, threads and messages, without ``/v1``."""
    router = APIRouter()
    assistants, threads, messages = Assistants(services), Threads(services), Messages(services)
    router.add_api_route("/assistants", assistants.create, methods=["POST"])
    router.add_api_route("/assistants", assistants.list, methods=["GET"])
    router.add_api_route("/assistants/{assistant_id}", assistants.get, methods=["GET"])
    router.add_api_route("/assistants/{assistant_id}", assistants.modify, methods=["POST"])
    router.add_api_route("/assistants/{assistant_id}", assistants.delete, methods=["DELETE"])
    router.add_api_route("/threads", threads.create, methods=["POST"])
    router.add_api_route("/threads/{thread_id}", threads.get, methods=["GET"])
    router.add_api_route("/threads/{thread_id}", threads.modify, methods=["POST"])
    router.add_api_route("/threads/{thread_id}", threads.delete, methods=["DELETE"])
    router.add_api_route("/threads/{thread_id}/messages", messages.create, methods=["POST"])
    router.add_api_route("/threads/{thread_id}/messages", messages.list, methods=["GET"])
    router.add_api_route("/threads/{thread_id}/messages/{message_id}", messages.get, methods=["GET"])
    router.add_api_route("/threads/{thread_id}/messages/{message_id}", messages.modify, methods=["POST"])
    router.add_api_route("/threads/{thread_id}/messages/{message_id}", messages.delete, methods=["DELETE"])
    return router
