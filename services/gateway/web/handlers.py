"""Exceptions of the web framework and of ours, as replies in the shape of the OpenAI API."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from services.errors import Cancelled, TandemError
from services.gateway.answering.observer import AnswerObserver
from services.gateway.web.errors import SERVER_ERROR, error_body
from services.gateway.web.replies import JsonReply, error_reply


def add_error_handlers(app: FastAPI, observer: AnswerObserver) -> None:
    """Make ``app`` answer every expected exception."""

    async def refused(request: Request, error: Exception) -> JsonReply:
        known = error if isinstance(error, TandemError) else Cancelled("The client went away.")
        observer.refused(known)
        return error_reply(known)

    app.add_exception_handler(TandemError, refused)
    app.add_exception_handler(ClientDisconnect, refused)
    app.add_exception_handler(HTTPException, _http_exception)


async def _http_exception(request: Request, error: Exception) -> JsonReply:
    if not isinstance(error, HTTPException):
        raise error
    body = error_body(_message(request, error), code=_CODES.get(error.status_code))
    if error.status_code >= 500:
        body["error"]["type"] = SERVER_ERROR
    return JsonReply(body, error.status_code, error.headers)


_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def _message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"Invalid URL ({request.method} {request.url.path})"
    if error.status_code == 405:
        return f"Not allowed to {request.method} on {request.url.path}."
    return str(error.detail)
