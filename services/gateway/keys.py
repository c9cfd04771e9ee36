"""API keys: made once, kept as hashes, each belongs to a project.

tandem:keys    hash: sha256 of the key (hex) -> JSON {id, project, created, hint}
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from services.errors import InvalidRequest, NotFound
from services.gateway.redis_state import RedisState
from services.telemetry.clock import Clock

KEY_PREFIX = "sk-tandem-"
_KEYS = "tandem:keys"


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key; the key itself is shown once, when it is made."""

    key_id: str
    project: str
    created: int
    hint: str
    """Its last four characters, to tell keys apart."""


class KeyStore(Protocol):
    """Where API keys are kept. All methods raise StateUnavailable when it cannot be reached."""

    async def create(self, project: str) -> str:
        """Make a key for ``project`` and return it; it cannot be read again.

        Raises:
            InvalidRequest: not a project name.
        """

    async def list(self) -> Sequence[ApiKey]:
        """Return all keys, oldest first."""

    async def revoke(self, key_id: str) -> None:
        """Forget a key.

        Raises:
            NotFound: no such key.
        """

    async def projects(self) -> Mapping[str, str]:
        """Return the project of each key's digest."""


def key_digest(key: str) -> str:
    """Return the name that a key is kept under. Keys have 256 random bits, so one plain hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(project: str, clock: Clock) -> tuple[str, ApiKey]:
    """Return a new key and what is kept of it.

    Raises:
        InvalidRequest: not a project name.
    """
    check_project(project)
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, ApiKey(f"key_{key_digest(key)[:12]}", project, int(clock.wall()), key[-4:])


def check_project(project: str) -> None:
    """Refuse what is no name of a project.

    Raises:
        InvalidRequest: it is none.
    """
    if not project or len(project) > 64 or not project.isprintable() or project != project.strip():
        raise InvalidRequest("A project name has 1 to 64 printable characters.", param="project")


class MemoryKeyStore:
    """Keys in this process, for tests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}

    async def create(self, project: str) -> str:
        """Make a key for ``project`` and return it."""
        key, kept = new_key(project, self._clock)
        self._keys[key_digest(key)] = kept
        return key

    async def list(self) -> Sequence[ApiKey]:
        """Return all keys, oldest first."""
        return _oldest_first(self._keys.values())

    async def revoke(self, key_id: str) -> None:
        """Forget a key."""
        digest = _digest_of(key_id, self._keys)
        del self._keys[digest]

    async def projects(self) -> Mapping[str, str]:
        """Return the project of each key's digest."""
        return {digest: key.project for digest, key in self._keys.items()}


class RedisKeyStore:
    """Keys in Redis, shared by all gateways."""

    def __init__(self, state: RedisState, clock: Clock) -> None:
        self._state = state
        self._clock = clock

    async def create(self, project: str) -> str:
        """Make a key for ``project`` and return it."""
        key, kept = new_key(project, self._clock)
        async with self._state.reaching() as client:
            await client.hset(_KEYS, key_digest(key), json.dumps(asdict(kept)))
        return key

    async def list(self) -> Sequence[ApiKey]:
        """Return all keys, oldest first."""
        return _oldest_first((await self._read()).values())

    async def revoke(self, key_id: str) -> None:
        """Forget a key."""
        digest = _digest_of(key_id, await self._read())
        async with self._state.reaching() as client:
            await client.hdel(_KEYS, digest)

    async def projects(self) -> Mapping[str, str]:
        """Return the project of each key's digest."""
        return {digest: key.project for digest, key in (await self._read()).items()}

    async def _read(self) -> dict[str, ApiKey]:
        async with self._state.reaching() as client:
            kept = await client.hgetall(_KEYS)
        return {_text(digest): ApiKey(**json.loads(text)) for digest, text in kept.items()}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _oldest_first(keys: Iterable[ApiKey]) -> Sequence[ApiKey]:
    return sorted(keys, key=lambda key: (key.created, key.key_id))


def _digest_of(key_id: str, keys: Mapping[str, ApiKey]) -> str:
    digest = next((digest for digest, key in keys.items() if key.key_id == key_id), None)
    if digest is None:
        raise NotFound(f"There is no API key '{key_id}'.")
    return digest
