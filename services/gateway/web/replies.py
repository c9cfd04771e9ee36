"""JSON replies, and errors as replies."""

from typing import Any

import orjson
from starlette.responses import Response

from services.errors import TandemError
from services.gateway.web.errors import body_of, headers_of, http_error


class JsonReply(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of ``content``."""
        return orjson.dumps(content)


def error_reply(error: TandemError) -> JsonReply:
    """Return the reply that tells ``error``."""
    return JsonReply(body_of(error), http_error(error).status, headers_of(error))
