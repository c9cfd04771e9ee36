"""A reply of known length whose bytes are read as the client takes them."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.errors import Cancelled


class BytesReply(Response):
    """Sends ``chunks``, of ``num_bytes`` in all; a failure on the way cuts the reply short of its length."""

    media_type = "application/octet-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        num_bytes: int,
        headers: Mapping[str, str],
        send_timeout_s: float,
    ) -> None:
        super().__init__(headers={**headers, "content-length": str(num_bytes)})
        self._chunks = chunks
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything.

        Raises:
            TandemError: the bytes could not be read.
            Cancelled: the client took nothing for ``send_timeout_s``.
        """
        has_started = False
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                if not has_started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    has_started = True
                await self._send(send, chunk)
        if not has_started:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError as error:
            raise Cancelled(f"The client read nothing for {self._send_timeout_s:g} s.") from error
