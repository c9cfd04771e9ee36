"""``tandem drain MEMBER... | --role ROLE | --address HOST:PORT``: let workers leave, and watch them do it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.cli.failures import EXIT_FAILED
from services.cli.settings import DrainSettings
from services.cli.state import find_redis_url, secret_path
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import DrainRequests, Member, Registry
from services.cluster.secret import load_secret
from services.command_line import nearest, split_words
from services.config import load
from services.errors import ConfigurationError, PeerGone, PeerStalled, TandemError
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.tls import tls_of
from services.telemetry.clock import Clock, SystemClock

USAGE = "tandem drain MEMBER... | --role ROLE | --address HOST:PORT"
POLL_S = 0.5
_LONGEST_DRAIN_S = 24 * 3600.0
_MARGIN_S = 10.0


@dataclass(frozen=True)
class Target:
    """One worker to drain; ``member_id`` is empty if only its address is known."""

    member_id: str
    address: str

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        return self.member_id or self.address


class Operator(Protocol):
    """Talks to workers directly."""

    async def drain(self, target: Target) -> int:
        """Tell a worker to leave; return how much was left when its time was over.

        Raises:
            PeerGone, PeerStalled: it cannot be reached.
            TandemError: it refuses.
        """

    async def num_live(self, target: Target) -> int:
        """Return how much a drain of it still waits for; raises what ``drain`` does."""


class Cluster(Registry, DrainRequests, Protocol):
    """What is asked of Redis."""


def main(argv: Sequence[str]) -> int:
    """Drain workers; the status is 0 if none of them had anything left."""
    names, options = split_words(argv)
    settings = load(DrainSettings, options, prog="tandem drain").settings
    if (bool(names) + bool(settings.role) + bool(settings.address)) != 1 and "-h" not in options:
        raise ConfigurationError(f"expected {USAGE}")
    return asyncio.run(_run(settings, names))


def chosen(members: Sequence[Member], names: Sequence[str], role: str | None) -> list[Target]:
    """Return the members of those names (or beginnings of names that say which), or of that role.

    Raises:
        ConfigurationError: a name fits nobody or several, or nobody has that role.
    """
    if role is not None:
        members = [member for member in members if member.role.value == role]
        if not members:
            raise ConfigurationError(f"no {role} worker belongs to the cluster")
    else:
        members = [_named(members, name) for name in names]
    return [Target(member.member_id, member.address) for member in members]


class Draining:
    """Drains workers and says how far they are."""

    def __init__(
        self, operator: Operator, cluster: Cluster | None, clock: Clock, say: Callable[[str], None], *, wait_s: float
    ) -> None:
        """``wait_s`` bounds the wait for a worker that can only be asked through ``cluster``."""
        self._operator = operator
        self._cluster = cluster
        self._clock = clock
        self._say = say
        self._wait_s = wait_s

    async def all_left(self, targets: Sequence[Target]) -> bool:
        """Drain all at once; return whether all of them have nothing left."""
        return all(await asyncio.gather(*(self._has_left(target) for target in targets)))

    async def _has_left(self, target: Target) -> bool:
        try:
            remaining = await self._directly(target)
        except (PeerGone, PeerStalled) as error:
            if self._cluster is None or not target.member_id:
                self._say(f"{target.name}: cannot be reached: {error.message}")
                return False
            self._say(f"{target.name}: cannot be reached from here; asking it through Redis")
            return await self._through(self._cluster, target.member_id)
        except TandemError as error:
            self._say(f"{target.name}: {error.message}")
            return False
        self._say(f"{target.name}: {f'gave up with {remaining} left' if remaining else 'drained'}")
        return not remaining

    async def _directly(self, target: Target) -> int:
        draining = asyncio.create_task(self._operator.drain(target))
        try:
            known: int | None = None
            while not draining.done():
                await self._clock.sleep(POLL_S)
                if not draining.done() and (live := await self._operator.num_live(target)) not in (0, known):
                    known = live
                    self._say(f"{target.name}: {live} left")
            return draining.result()
        finally:
            draining.cancel()

    async def _through(self, cluster: Cluster, member_id: str) -> bool:
        """Ask the worker by a note that it reads, and learn from its own record what it does."""
        await cluster.ask_to_leave(member_id)
        known: int | None = None
        ends_s = self._clock.now() + self._wait_s
        while self._clock.now() < ends_s:
            member = next((each for each in await cluster.members() if each.member_id == member_id), None)
            if member is None:
                self._say(f"{member_id}: left the cluster")
                return True
            if member.draining and member.load.is_closed and member.load.live != known:
                known = member.load.live
                self._say(f"{member_id}: {known} left" if known else f"{member_id}: drained")
            if known == 0:
                return True
            await self._clock.sleep(POLL_S)
        self._say(f"{member_id}: {'still at work' if known is not None else 'does not take notice'}; gave up waiting")
        return False


class GrpcOperator:
    """Calls the admin service of workers."""

    def __init__(self, channels: Channels, *, within_s: float, timeout_s: float) -> None:
        """``within_s`` of 0 leaves the time to the workers; ``timeout_s`` bounds a question."""
        self._channels = channels
        self._within_s = within_s
        self._timeout_s = timeout_s

    async def drain(self, target: Target) -> int:
        """Tell a worker to leave."""
        await self.num_live(target)  # who cannot be reached is known soon
        request = pb.DrainRequest(timeout_s=self._within_s, member_id=target.member_id)
        longest_s = self._within_s + _MARGIN_S if self._within_s else _LONGEST_DRAIN_S
        with translated():
            reply = await self._channels.admin(target.address).Drain(request, timeout=longest_s)
        return reply.remaining

    async def num_live(self, target: Target) -> int:
        """Ask a worker what it still has."""
        with translated():
            return (await self._channels.admin(target.address).Status(pb.StatusRequest(), timeout=self._timeout_s)).live


def _named(members: Sequence[Member], name: str) -> Member:
    found = [member for member in members if member.member_id.startswith(name)]
    exact = [member for member in found if member.member_id == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    known = [member.member_id for member in members]
    if found:
        raise ConfigurationError(f"{name} may be any of {', '.join(member.member_id for member in found)}")
    raise ConfigurationError(f"no member is called {name}{nearest(name, known)}; `tandem status` lists them")


async def _run(settings: DrainSettings, names: Sequence[str]) -> int:
    secret = load_secret(settings.secret_file or secret_path(settings.data_dir))
    clock, channels = SystemClock(), Channels(secret, tls_of(settings))
    operator = GrpcOperator(channels, within_s=settings.within_s, timeout_s=settings.timeout_s)
    wait_s = settings.within_s or _LONGEST_DRAIN_S
    registry: RedisRegistry | None = None
    try:
        if settings.address is not None:
            targets = [Target("", settings.address)]
        else:
            redis_url = find_redis_url(settings.data_dir, settings.redis_url)
            registry = RedisRegistry(redis_url, secret, clock, timeout_s=settings.timeout_s)
            targets = chosen(await registry.members(), names, settings.role)
        draining = Draining(operator, registry, clock, print, wait_s=wait_s)
        return 0 if await draining.all_left(targets) else EXIT_FAILED
    finally:
        await channels.close()
        if registry is not None:
            await registry.close()
