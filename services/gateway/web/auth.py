"""Who calls: from the headers of a request to a project."""

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address
from math import inf

from services.cluster.background import Outage
from services.errors import AuthenticationFailed, StateUnavailable
from services.gateway.keys import KeyStore, key_digest
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

DEFAULT_PROJECT = "default"
# An unknown key may have been made a moment ago by another process, so it waits for a read that begins after it was
# heard of. One read serves all who wait, and such reads take at most this share of the time.
_MAX_READ_SHARE = 0.1
_RETRY_S = 0.25

_log = get_logger(__name__)


class KnownKeys:
    """The keys last seen in the store; while it is away, or slow to answer, they stay known.

    Only callers that the known keys cannot decide about wait for the store, all of them for one read:
    when nothing was read yet, or for a key made since the last read while the store answers.
    """

    def __init__(self, store: KeyStore, clock: Clock, refresh_s: float) -> None:
        self._store = store
        self._clock = clock
        self._refresh_s = refresh_s
        self._projects: Mapping[str, str] | None = None
        self._began_s = -inf
        self._next_s = -inf
        self._reading = asyncio.Lock()
        self._outage = Outage("keys", _log)

    async def project_of(self, key: str) -> str | None:
        """Return the project of a key, or None for an unknown one.

        Raises:
            StateUnavailable: the keys were never read and cannot be read now.
        """
        digest, heard_s = key_digest(key), self._clock.now()
        project = (await self._known()).get(digest)
        if project is None and not self._outage.is_on:
            await self._read(heard_s)
            project = (await self._known()).get(digest)
        return project

    async def is_empty(self) -> bool:
        """Return whether no key exists at all.

        Raises:
            StateUnavailable: the keys were never read and cannot be read now.
        """
        return not await self._known()

    async def refresh(self) -> None:
        """Read the keys anew; a store that is away leaves them as they were known."""
        await self._read(inf)

    async def follow(self) -> None:
        """Keep the keys up to date, until cancelled."""
        while True:
            await self.refresh()
            await self._clock.sleep(_RETRY_S if self._outage.is_on else self._refresh_s)

    async def _known(self) -> Mapping[str, str]:
        if self._projects is None:
            await self._read(self._clock.now())
        if self._projects is None:
            raise StateUnavailable("The API keys cannot be read.")
        return self._projects

    async def _read(self, since_s: float) -> None:
        """Make sure that a read began at ``since_s`` or later, ours or that of somebody before us; ``inf``: ours."""
        async with self._reading:
            if self._began_s >= since_s:
                return
            await self._clock.sleep(max(0.0, self._next_s - self._clock.now()))
            self._began_s = self._clock.now()
            try:
                self._projects = await self._store.projects()
                self._outage.succeeded()
            except StateUnavailable as error:
                self._outage.failed(error)
            distance_s = (self._clock.now() - self._began_s) / _MAX_READ_SHARE
            self._next_s = self._began_s + min(distance_s, self._refresh_s)


class Authenticator:
    """Maps a caller to a project."""

    def __init__(self, keys: KnownKeys, *, trust_loopback: bool) -> None:
        self._keys = keys
        self._trust_loopback = trust_loopback

    async def project_of(self, headers: Mapping[str, str], client_host: str | None) -> str:
        """Return the caller's project.

        Raises:
            AuthenticationFailed: no key, or an unknown one, where one is needed.
            StateUnavailable: the keys were never read and cannot be read now.
        """
        key = key_in(headers)
        if key is not None and (project := await self._keys.project_of(key)) is not None:
            return project
        if self._trust_loopback and _is_from_here(headers, client_host) and await self._keys.is_empty():
            return DEFAULT_PROJECT
        if key is None:
            raise AuthenticationFailed(
                "You didn't provide an API key. Provide it in an Authorization header using Bearer auth "
                "(i.e. Authorization: Bearer YOUR_KEY); `tandem keys create` makes one."
            )
        raise AuthenticationFailed(f"Incorrect API key provided: {_redacted(key)}.")


def key_in(headers: Mapping[str, str]) -> str | None:
    """Return the API key of a request: ``Authorization: Bearer`` or ``x-api-key``."""
    authorization = headers.get("authorization", "")
    if authorization[:7].lower() == "bearer ":
        return authorization[7:].strip() or None
    return headers.get("x-api-key") or None


def _is_from_here(headers: Mapping[str, str], client_host: str | None) -> bool:
    # What a proxy on this host forwards comes from anywhere.
    if "x-forwarded-for" in headers or "forwarded" in headers:
        return False
    if client_host is None:  # a unix socket
        return True
    try:
        return ip_address(client_host).is_loopback
    except ValueError:
        return False


def _redacted(key: str) -> str:
    return f"{key[:3]}...{key[-4:]}" if len(key) > 16 else "..."
