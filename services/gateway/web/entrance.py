"""From an HTTP request to an exchange: who calls, under which id, and with which body."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import Request

from services.errors import RequestTimeout
from services.gateway.web.auth import Authenticator
from services.gateway.web.exchange import Exchange, open_exchange
from services.telemetry.clock import Clock


class Entrance:
    """Lets callers in."""

    def __init__(
        self, authenticator: Authenticator, clock: Clock, *, request_timeout_s: float, body_timeout_s: float
    ) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._request_timeout_s = request_timeout_s
        self._body_timeout_s = body_timeout_s

    async def exchange(self, request: Request) -> Exchange:
        """Return the exchange of a request.

        Raises:
            AuthenticationFailed: the caller is not known and has to be.
            StateUnavailable: the API keys were never read and cannot be read now.
        """
        client_host = request.client.host if request.client else None
        project = await self._authenticator.project_of(request.headers, client_host)
        return open_exchange(
            request.state.token,
            project,
            self._clock,
            started_s=request.state.started_s,
            timeout_s=self._request_timeout_s,
        )

    async def body(self, request: Request) -> bytes:
        """Return the whole body of a request.

        Raises:
            RequestTimeout: it did not arrive in time.
            PayloadTooLarge: it is longer than allowed.
        """
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await request.body()
        except TimeoutError as error:
            raise RequestTimeout(f"The body did not arrive within {self._body_timeout_s:g} s.") from error

    async def body_chunks(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes, for bodies that shall not be in memory as a whole.

        Raises:
            RequestTimeout: nothing came for as long as a whole body may take elsewhere, or the request got too old.
            PayloadTooLarge: it is longer than allowed.
        """
        stream, now_s = request.stream(), asyncio.get_running_loop().time
        deadline_s = now_s() + self._request_timeout_s
        while True:
            try:
                async with asyncio.timeout_at(min(deadline_s, now_s() + self._body_timeout_s)):
                    chunk = await anext(stream, None)
            except TimeoutError as error:
                raise RequestTimeout("The body did not arrive in time.") from error
            if chunk is None:
                return
            yield chunk
