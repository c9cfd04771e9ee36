"""The table between Tandem's errors and HTTP: status, type and body in the shape of the OpenAI API."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from services import errors
from services.errors import TandemError
from services.rpc.errors import shortened

CLIENT_ERROR = "invalid_request_error"
SERVER_ERROR = "server_error"
MAX_RETRY_AFTER_S = 60
"""OpenAI's clients ignore longer advice."""
_MAX_MESSAGE_LENGTH = 2000
"""Some messages quote what the client sent."""


@dataclass(frozen=True)
class HttpError:
    """How a class of errors is told over HTTP; ``code`` replaces the error's own where clients know another."""

    status: int
    type: str
    code: str | None = None
    retry_after_s: float | None = None
    may_retry: bool = True
    tells_code: bool = True
    """Whether the body has a code; OpenAI tells some errors by their message alone."""


_TABLE: dict[type[TandemError], HttpError] = {
    errors.RequestError: HttpError(400, CLIENT_ERROR),
    errors.AuthenticationFailed: HttpError(401, CLIENT_ERROR),
    errors.PermissionDenied: HttpError(403, CLIENT_ERROR),
    errors.NotFound: HttpError(404, CLIENT_ERROR),
    errors.ObjectNotFound: HttpError(404, CLIENT_ERROR, tells_code=False),
    errors.ObjectRefused: HttpError(400, CLIENT_ERROR, tells_code=False),
    errors.Conflict: HttpError(409, CLIENT_ERROR),
    errors.RequestTimeout: HttpError(408, CLIENT_ERROR),
    errors.PayloadTooLarge: HttpError(413, CLIENT_ERROR),
    errors.Overloaded: HttpError(429, "rate_limit_error", code="rate_limit_exceeded", retry_after_s=1.0),
    errors.Unavailable: HttpError(503, SERVER_ERROR, retry_after_s=2.0),
    errors.PeerError: HttpError(502, SERVER_ERROR),
    errors.IntegrityError: HttpError(502, SERVER_ERROR),
    errors.Cancelled: HttpError(499, CLIENT_ERROR),
    errors.DeadlineExceeded: HttpError(504, SERVER_ERROR, may_retry=False),
    errors.TandemError: HttpError(500, SERVER_ERROR),
}


def http_error(error: TandemError) -> HttpError:
    """Return the entry of an error's nearest listed class."""
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)


def error_body(
    message: str, *, type: str = CLIENT_ERROR, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return an error body in the shape that OpenAI's clients read."""
    return {"error": {"message": shortened(message, _MAX_MESSAGE_LENGTH), "type": type, "param": param, "code": code}}


def body_of(error: TandemError) -> dict[str, Any]:
    """Return the body that tells ``error``."""
    entry = http_error(error)
    code = (entry.code or error.code) if entry.tells_code else None
    return error_body(error.message, type=entry.type, param=error.param, code=code)


def headers_of(error: TandemError) -> Mapping[str, str]:
    """Return the headers that tell a client whether and when to try again."""
    entry = http_error(error)
    headers = {} if entry.may_retry else {"x-should-retry": "false"}
    retry_after_s = error.retry_after_s if error.retry_after_s is not None else entry.retry_after_s
    if retry_after_s is not None:
        headers["retry-after"] = str(min(max(1, ceil(retry_after_s)), MAX_RETRY_AFTER_S))
    return headers
