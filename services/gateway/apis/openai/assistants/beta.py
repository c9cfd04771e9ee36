"""The header ``OpenAI-Beta`` of the Assistants API: which version of the API a client means."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from services.errors import InvalidRequest

SERVED = "assistants=v2"
WITHDRAWN = "assistants=v1"
CODE = "invalid_beta"
_AGAIN = f"Please try again by setting the header 'OpenAI-Beta: {SERVED}'."


def beta_check(*, is_required: bool) -> Callable[[Request], Awaitable[None]]:
    """Return a dependency that refuses requests for another version, and those that name none if they have to.

    The header is a list that may name other betas too, and may be repeated.
    """

    async def check(request: Request) -> None:
        named = [each.strip() for value in request.headers.getlist("openai-beta") for each in value.split(",")]
        if SERVED in named:
            return
        if WITHDRAWN in named:
            raise InvalidRequest(f"The version '{WITHDRAWN}' of the Assistants API is not served. {_AGAIN}", code=CODE)
        if is_required:
            text = "You must provide the 'OpenAI-Beta' header to access the Assistants API."
            raise InvalidRequest(f"{text} {_AGAIN}", code=CODE)

    return check
