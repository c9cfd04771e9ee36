"""The routes of the Assistants API."""

from fastapi import APIRouter, Depends

from services.gateway.apis.openai.assistants.assistants import Assistants
from services.gateway.apis.openai.assistants.beta import beta_check
from services.gateway.apis.openai.assistants.messages import Messages
from services.gateway.apis.openai.assistants.runs import RunEndpoints
from services.gateway.apis.openai.assistants.threads import Threads
from services.gateway.apis.openai.service import OpenAIServices


def assistants_routes(services: OpenAIServices) -> APIRouter:
    """Return the routes of assistants, threads and messages, without ``/v1``."""
    router = APIRouter(dependencies=[Depends(beta_check(is_required=services.requires_beta))])
    assistants, threads, messages = Assistants(services), Threads(services), Messages(services)
    runs = RunEndpoints(services)
    router.add_api_route("/assistants", assistants.create, methods=["POST"])
    router.add_api_route("/assistants", assistants.list, methods=["GET"])
    router.add_api_route("/assistants/{assistant_id}", assistants.get, methods=["GET"])
    router.add_api_route("/assistants/{assistant_id}", assistants.modify, methods=["POST"])
    router.add_api_route("/assistants/{assistant_id}", assistants.delete, methods=["DELETE"])
    router.add_api_route("/threads/runs", runs.create_with_thread, methods=["POST"])  # before ids of threads
    router.add_api_route("/threads", threads.create, methods=["POST"])
    router.add_api_route("/threads/{thread_id}", threads.get, methods=["GET"])
    router.add_api_route("/threads/{thread_id}", threads.modify, methods=["POST"])
    router.add_api_route("/threads/{thread_id}", threads.delete, methods=["DELETE"])
    router.add_api_route("/threads/{thread_id}/messages", messages.create, methods=["POST"])
    router.add_api_route("/threads/{thread_id}/messages", messages.list, methods=["GET"])
    router.add_api_route("/threads/{thread_id}/messages/{message_id}", messages.get, methods=["GET"])
    router.add_api_route("/threads/{thread_id}/messages/{message_id}", messages.modify, methods=["POST"])
    router.add_api_route("/threads/{thread_id}/messages/{message_id}", messages.delete, methods=["DELETE"])
    _add_run_routes(router, runs)
    return router


def _add_run_routes(router: APIRouter, runs: RunEndpoints) -> None:
    whole, one = "/threads/{thread_id}/runs", "/threads/{thread_id}/runs/{run_id}"
    router.add_api_route(whole, runs.create, methods=["POST"])
    router.add_api_route(whole, runs.list, methods=["GET"])
    router.add_api_route(one, runs.get, methods=["GET"])
    router.add_api_route(one, runs.modify, methods=["POST"])
    router.add_api_route(f"{one}/cancel", runs.cancel, methods=["POST"])
    router.add_api_route(f"{one}/submit_tool_outputs", runs.submit_tool_outputs, methods=["POST"])
    router.add_api_route(f"{one}/events", runs.events, methods=["GET"])
    router.add_api_route(f"{one}/steps", runs.list_steps, methods=["GET"])
    router.add_api_route(f"{one}/steps/{{step_id}}", runs.get_step, methods=["GET"])
