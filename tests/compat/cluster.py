"""What suites are run against.

Either a real gateway process over a real Redis that is seeded anew whenever a suite's plugin asks, with workers that
play scripts; or a whole cluster with a small real model.
"""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from services.gateway.keys import ApiKey, key_digest
from services.gateway.redis_state import RedisState
from services.gateway.store.keys import project_prefix
from services.gateway.store.object_store import ObjectStore
from services.gateway.web.auth import DEFAULT_PROJECT
from tests.compat.gw_seed import DONE, SEED_TIMEOUT_S
from tests.compat.seeds import CREATED, EMBEDDING_ALIAS, MODELS, seeds
from tests.e2e.up import MODEL as SMALL_MODEL
from tests.e2e.up import running_up
from tests.gateway.embedding_server import embedding_worker
from tests.gateway.embedding_twin import EMBEDDING_MODEL
from tests.gateway.process import Running, gateway
from tests.gateway.twins import MODEL

_DELETED_AT_ONCE = 500
_KEY = "My API Key"
"""The API key of the tests."""


@dataclass(frozen=True)
class CompatCluster:
    """What the suite talks to."""

    base_url: str
    log: Path
    model: str
    """The chat model that is served."""
    seed_socket: Path | None = None
    """Where the store is emptied and seeded, if tests need that."""


@asynccontextmanager
async def compat_cluster(folder: Path) -> AsyncIterator[CompatCluster]:
    """Start everything in ``folder``; the gateway's log goes to ``gateway.log`` there."""
    aliases = json.dumps({**dict.fromkeys(MODELS, MODEL), EMBEDDING_ALIAS: EMBEDDING_MODEL})
    options = ("--lenient-objects", "--redis-timeout-s", "30", "--model-aliases", aliases)
    async with (
        gateway(folder, *options) as running,
        _logged(running, folder / "gateway.log"),
        embedding_worker(running.redis.url),
    ):
        state = RedisState(running.redis.url, SEED_TIMEOUT_S)
        await _register_key(state)
        seed_socket = folder / "seed.sock"
        server = await asyncio.start_unix_server(_Seeder(state).serve, seed_socket)
        try:
            yield CompatCluster(f"{running.url}/v1", folder / "gateway.log", MODEL, seed_socket)
        finally:
            server.close()
            await server.wait_closed()
            await state.close()


@asynccontextmanager
async def real_cluster(folder: Path) -> AsyncIterator[CompatCluster]:
    """Start ``tandem up`` in ``folder``."""
    with running_up(folder, {}) as up:
        yield CompatCluster(f"{up.url}/v1", up.log, SMALL_MODEL)


async def _register_key(state: RedisState) -> None:
    kept = ApiKey("key_compat", DEFAULT_PROJECT, CREATED, _KEY[-4:])
    async with state.reaching() as client:
        await client.hset("tandem:keys", key_digest(_KEY), json.dumps(asdict(kept)))


class _Seeder:
    """Answers one line, the id of a test, when the store holds what that test needs."""

    def __init__(self, state: RedisState) -> None:
        self._state = state
        self._objects = ObjectStore(state).of(DEFAULT_PROJECT)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        test_id = (await reader.readline()).decode().strip()
        await self._empty()
        await self._objects.apply(seeds(test_id))
        writer.write(DONE)
        await writer.drain()
        writer.close()

    async def _empty(self) -> None:
        prefix = project_prefix(DEFAULT_PROJECT)
        async with self._state.reaching() as client:
            keys = [key async for key in client.scan_iter(f"{prefix}*", count=_DELETED_AT_ONCE)]
            for first in range(0, len(keys), _DELETED_AT_ONCE):
                await client.unlink(*keys[first : first + _DELETED_AT_ONCE])


@asynccontextmanager
async def _logged(running: Running, path: Path) -> AsyncIterator[None]:
    """Keep reading the gateway's log, which would stop it when nobody did."""
    reader = running.process.stderr
    assert reader is not None

    async def copy() -> None:
        with path.open("wb") as log:
            while line := await reader.readline():
                log.write(line)
                log.flush()

    copying = asyncio.create_task(copy())
    try:
        yield
    finally:
        copying.cancel()
        with suppress(asyncio.CancelledError):
            await copying
