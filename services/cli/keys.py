"""``tandem keys create --project P | list | revoke ID``: API keys of the cluster."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from services.cli.settings import KeysSettings
from services.cli.state import find_redis_url
from services.cli.table import table
from services.command_line import split_words
from services.config import load
from services.errors import ConfigurationError
from services.gateway.keys import ApiKey, KeyStore, RedisKeyStore
from services.gateway.redis_state import RedisState
from services.telemetry.clock import SystemClock

USAGE = "tandem keys create --project NAME | list | revoke ID"


def main(argv: Sequence[str]) -> int:
    """Run one action on the keys; what it answers goes to standard output."""
    words, options = split_words(argv)
    action, *arguments = words or [""]
    settings = load(KeysSettings, options, prog=f"tandem keys {action}".strip()).settings
    run = _action(action, arguments, settings)
    redis_url = find_redis_url(settings.data_dir, settings.redis_url)
    print(asyncio.run(_with_store(redis_url, settings.timeout_s, run)))
    return 0


def keys_table(keys: Sequence[ApiKey]) -> str:
    """Return the keys for people; the keys themselves are not known."""
    if not keys:
        return "no keys: callers on this host need none, others are refused"
    rows = [
        (key.key_id, key.project, datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d %H:%M UTC"), key.hint)
        for key in keys
    ]
    return table(("ID", "PROJECT", "CREATED", "ENDS WITH"), rows)


def _action(action: str, arguments: list[str], settings: KeysSettings) -> Callable[[KeyStore], Awaitable[str]]:
    if action == "create" and not arguments and settings.project is not None:
        project = settings.project
        return lambda store: store.create(project)
    if action == "list" and not arguments:
        return _list
    if action == "revoke" and len(arguments) == 1:
        return lambda store: _revoke(store, arguments[0])
    raise ConfigurationError(f"expected {USAGE}")


async def _list(store: KeyStore) -> str:
    return keys_table(await store.list())


async def _revoke(store: KeyStore, key_id: str) -> str:
    await store.revoke(key_id)
    return f"revoked {key_id}"


async def _with_store(redis_url: str, timeout_s: float, run: Callable[[KeyStore], Awaitable[str]]) -> str:
    state = RedisState(redis_url, timeout_s)
    try:
        return await run(RedisKeyStore(state, SystemClock()))
    finally:
        await state.close()
