"""Bytes in Redis: written and read in chunks, so that a large file is never in this process as a whole."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Self

from services.errors import ObjectNotFound
from services.gateway.redis_state import RedisState
from services.gateway.store.keys import attached_key, attached_name, project_prefix
from services.gateway.store.kinds import Ref

CHUNK_BYTES = 2**20
STAGED_S = 3600
"""How long bytes are kept that belong to no object yet."""


class Blobs:
    """The bytes of one project's objects; all methods raise StateUnavailable when Redis cannot be reached."""

    def __init__(self, state: RedisState, project: str) -> None:
        self._state = state
        self._project = project

    def staged(self) -> "StagedBytes":
        """Return a place for bytes that an ``AdoptBytes`` will give to an object."""
        return StagedBytes(self._state, self._project)

    async def read(self, ref: Ref, num_chunks: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an object in order.

        Raises:
            ObjectNotFound: it was deleted meanwhile.
        """
        for place in range(num_chunks):
            async with self._state.reaching() as client:
                chunk = await client.get(attached_key(self._project, ref, _name(place)))
            if chunk is None:
                raise ObjectNotFound(ref.absent_text)
            yield bytes(chunk) if not isinstance(chunk, str) else chunk.encode()


class StagedBytes:
    """Takes bytes in pieces of any size; ``async with``: a failure removes them.

    They vanish by themselves, later, unless an object adopts them.
    """

    def __init__(self, state: RedisState, project: str) -> None:
        self._state = state
        self._prefix = project_prefix(project)
        self._token = secrets.token_hex(12)
        self._waiting = bytearray()
        self.names: list[str] = []
        """Keys written so far, after the project's prefix."""
        self.num_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            await self._discard()

    async def write(self, data: bytes) -> None:
        """Take the next bytes; whole chunks go to Redis."""
        self.num_bytes += len(data)
        self._waiting += data
        while len(self._waiting) >= CHUNK_BYTES:
            await self._store(bytes(self._waiting[:CHUNK_BYTES]))
            del self._waiting[:CHUNK_BYTES]

    async def finish(self) -> None:
        """Write what is left."""
        if self._waiting:
            await self._store(bytes(self._waiting))
            self._waiting.clear()

    async def _discard(self) -> None:
        if self.names:
            async with self._state.reaching() as client:
                await client.unlink(*(self._prefix + name for name in self.names))

    async def _store(self, chunk: bytes) -> None:
        name = f"staged:{self._token}/{len(self.names)}"
        async with self._state.reaching() as client:
            await client.set(self._prefix + name, chunk, ex=STAGED_S)
        self.names.append(name)


def adopted_names(ref: Ref, num_chunks: int) -> Sequence[str]:
    """Return the names of an object's bytes, after the project's prefix."""
    return [attached_name(ref, _name(place)) for place in range(num_chunks)]


def _name(place: int) -> str:
    return f"bytes.{place}"
