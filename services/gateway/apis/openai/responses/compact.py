"""``/v1/responses/compact``."""

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.apis.openai.objects import ObjectEndpoint
from services.gateway.apis.openai.responses.bodies import (
    CompactResponse,
    ResponseFields,
    check_compaction,
    model_of,
    prompt_json,
)
from services.gateway.apis.openai.responses.items import input_items
from services.gateway.responses.documents import usage_json
from services.gateway.store.kinds import RESPONSE
from services.gateway.web.connection import while_connected
from services.gateway.web.replies import JsonReply


class CompactionEndpoint(ObjectEndpoint):
    """Compactions of conversations, of which nothing is stored."""

    async def create(self, request: Request) -> Response:
        """Return a conversation as the items that may stand for it from now on."""
        call, services = await self._call(request), self._services
        body = await self._body(request, CompactResponse)
        check_compaction(body, is_lenient=services.is_lenient)
        services.answers.require_room(call.exchange.project)
        items = await input_items(call.objects, body.input)
        ref, model = RESPONSE.new_ref(), await model_of(body, services.catalog)
        fields = ResponseFields(instructions=body.instructions, previous_response_id=body.previous_response_id)
        work = services.responses.compactor.compact(
            call.exchange.project, prompt_json(ref, model, fields), items, call.exchange.deadline_s
        )
        compacted = await while_connected(request.receive, work)
        return JsonReply(
            {
                "id": ref.id,
                "object": "response.compaction",
                "created_at": call.exchange.created,
                "output": compacted.output,
                "usage": usage_json(compacted.used),
            }
        )
