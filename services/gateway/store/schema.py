"""The version of the layout of keys (docs/store.md), which gateways agree on before they use them.

    tandem:schema           the version that the keys have
    {tandem:schema}:lease   who changes them to the next version, while somebody does

A Redis without a version has the first one: that is the layout from before it was written down. A change of the layout
raises ``SCHEMA_VERSION`` and adds to ``MIGRATIONS`` what makes keys of the version before into keys of the new one.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress

from services.cluster.background import Outage, end_all
from services.errors import ConfigurationError, DeadlineExceeded, LeaseLost, StateUnavailable
from services.gateway.redis_state import RedisState
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

SCHEMA_VERSION = 1
FIRST_VERSION = 1

Migration = Callable[[RedisState], Coroutine[None, None, None]]
"""Makes keys of one version into keys of the next. Another gateway may begin it again, even beside one that has lost
its lease without noticing: each of its steps is atomic, and does nothing the second time."""

MIGRATIONS: Mapping[int, Migration] = {}
"""By the version that they begin with."""

LEASE_S = 30.0
POLL_S = 1.0
WAIT_S = 600.0
"""How long a gateway waits at its start for another one that migrates."""
_VERSION_KEY = "tandem:schema"
_LEASE_KEY = "{tandem:schema}:lease"  # in the same slot

# Of whoever holds the lease only. KEYS: lease, version. ARGV: token, milliseconds that the lease goes on, new version.
_UNDER_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
return 1
"""

_log = get_logger(__name__)


class Schema:
    """The version of one Redis, and the one that this process knows."""

    def __init__(
        self,
        state: RedisState,
        clock: Clock,
        *,
        version: int = SCHEMA_VERSION,
        migrations: Mapping[int, Migration] = MIGRATIONS,
    ) -> None:
        self._state = state
        self._clock = clock
        self._version = version
        self._migrations = migrations
        self._token = secrets.token_hex(12)

    async def require(self) -> None:
        """Refuse a Redis that has another version, as commands do that do not migrate.

        Raises:
            ConfigurationError: it has.
            StateUnavailable: Redis cannot be reached.
        """
        found = await self._found()
        if found < self._version:
            raise ConfigurationError(
                f"The keys in Redis have version {found} and this Tandem has version {self._version}: start one of its "
                "gateways first, which brings them up to date."
            )

    async def prepare(self) -> None:
        """Bring Redis to the version that this process knows, or wait for another gateway that does.

        Raises:
            ConfigurationError: Redis has a newer version, or one that nothing here makes newer.
            DeadlineExceeded: the other gateway takes too long.
            StateUnavailable: Redis cannot be reached.
        """
        ends_s = self._clock.now() + WAIT_S
        while (found := await self._found()) < self._version:
            if await self._take_lease():
                with suppress(LeaseLost):  # then the next look tells how far the other one is
                    await self._migrate()
            elif self._clock.now() >= ends_s:
                raise DeadlineExceeded(
                    f"Another gateway brings the keys in Redis from version {found} to {found + 1}, for more than "
                    f"{WAIT_S:g} s; look at its log."
                )
            else:
                await self._clock.sleep(POLL_S)

    @asynccontextmanager
    async def prepared(self) -> AsyncGenerator[None, None]:
        """Prepare Redis and run the body; while Redis is away the body runs, and is ended if it turns out not to fit.

        Raises:
            ConfigurationError, DeadlineExceeded: as ``prepare``.
        """
        try:
            await self.prepare()
        except StateUnavailable as error:
            _log.warning("schema.unknown", reason=error.message)
        else:
            yield
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                preparing = tasks.create_task(self._prepare_when_back())
                try:
                    yield
                finally:
                    preparing.cancel()
        except BaseExceptionGroup as group:
            if (refusal := group.subgroup((ConfigurationError, DeadlineExceeded))) is None:
                raise
            raise refusal.exceptions[0] from None

    async def _prepare_when_back(self) -> None:
        outage = Outage("schema", _log)
        while True:
            try:
                await self.prepare()
            except StateUnavailable as error:
                outage.failed(error)
                await self._clock.sleep(POLL_S)
            else:
                outage.succeeded()
                return

    async def _found(self) -> int:
        """Return the version that Redis has, which it has from now on if it had none.

        Raises:
            ConfigurationError: it is newer than ours, or no version.
        """
        async with self._state.reaching() as client:
            await client.set(_VERSION_KEY, FIRST_VERSION, nx=True)
            text = await client.get(_VERSION_KEY)
        value = text.decode() if isinstance(text, bytes) else str(text)
        if not value.isdecimal():
            raise ConfigurationError(f"The key {_VERSION_KEY} in Redis holds '{value}' instead of a version.")
        if int(value) > self._version:
            raise ConfigurationError(
                f"The keys in Redis have version {value} and this Tandem knows {self._version} at most: a newer one "
                "has used this Redis. Start that one, or give this one another Redis or a backup from before."
            )
        return int(value)

    async def _take_lease(self) -> bool:
        async with self._state.reaching() as client:
            return bool(await client.set(_LEASE_KEY, self._token, nx=True, px=round(1e3 * LEASE_S)))

    async def _migrate(self) -> None:
        """Make one step, under the lease, and give that back.

        Raises:
            LeaseLost: another gateway has it now; the step was stopped.
        """
        try:
            found = await self._found()  # read under the lease: the step may have been made meanwhile
            if found == self._version:
                return
            migrate = self._migrations.get(found)
            if migrate is None:
                raise ConfigurationError(
                    f"The keys in Redis have version {found}, and this Tandem, which has {self._version}, cannot bring "
                    "them up to date: start one between them first."
                )
            await self._run(found, migrate)
        finally:
            await self._under_lease(lease_ms=0)

    async def _run(self, found: int, migrate: Migration) -> None:
        _log.event("schema.migrating", version=found, to=found + 1)
        migrating = asyncio.create_task(migrate(self._state))
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.wait([migrating, renewing], return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                await renewing
            await migrating
        finally:
            await end_all([migrating, renewing])
        if not await self._under_lease(lease_ms=round(1e3 * LEASE_S), version=found + 1):
            raise _lost()
        _log.event("schema.migrated", version=found + 1)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(LEASE_S / 4)
            if not await self._under_lease(lease_ms=round(1e3 * LEASE_S)):
                raise _lost()

    async def _under_lease(self, *, lease_ms: int, version: int | None = None) -> bool:
        """Extend or end our lease, with a new version if one is given; return whether we have it."""
        async with self._state.reaching() as client:
            arguments: list[str | int] = [self._token, lease_ms, "" if version is None else version]
            return bool(await client.register_script(_UNDER_LEASE)(keys=[_LEASE_KEY, _VERSION_KEY], args=arguments))


def _lost() -> LeaseLost:
    return LeaseLost("Another gateway has taken over bringing the keys in Redis up to date.")
