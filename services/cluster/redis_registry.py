"""Membership in Redis or Valkey (6.2 or newer), one database, not a Redis Cluster.

    tandem:members           sorted set: member id -> end of its lease, milliseconds of Redis' own clock
    tandem:member:<id>       string: signed record (services/cluster/record.py), expires with the lease
    tandem:card:<digest>     string: canonical JSON of a model card, written once, kept for a day after
                             the last renewal of a member that names it

Leases are given and judged by Redis' clock, never by a host's. Members are listed by the sorted set
(no KEYS, no SCAN); whoever joins or renews also removes the ids whose lease ended. A record carries,
under its signature, how long it may be believed, so that the record of a dead member cannot be put
back later by somebody without the cluster secret.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.cluster.cards import check_card_of, read_card
from services.cluster.record import MemberRecord
from services.cluster.registry import Member
from services.cluster.secret import sign, verify
from services.errors import IntegrityError, NotFound, StateUnavailable
from services.kv.card import ModelCard
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_MEMBERS_KEY = "tandem:members"
_CARD_RETENTION_MS = 24 * 3600 * 1000
_NOTE_RETENTION_MS = 24 * 3600 * 1000
_NOTE_PURPOSE = "tandem drain"

_NOW = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS: members, member, card. ARGV: id, record, lease_ms, card_retention_ms, whether a lease must run already.
# Returns {now_ms, 1 if the lease was given else 0}.
_LEASE = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms))
if ARGV[5] == '1' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return {now_ms, 0} end
if redis.call('PEXPIRE', KEYS[3], ARGV[4]) == 0 then return {now_ms, 0} end
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + ARGV[3]), ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return {now_ms, 1}
"""
)

# KEYS: members. Returns {now_ms, {ids with a running lease}}.
_LIST = (
    _NOW
    + """
return {now_ms, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now_ms), '+inf')}
"""
)

_log = get_logger(__name__)


class RedisRegistry:
    """A ``Registry`` in the Redis at ``redis_url`` (``redis://``, ``rediss://`` or ``unix://``); close it after use."""

    def __init__(
        self,
        redis_url: str,
        secret: bytes,
        clock: Clock,
        lease_s: float = 15.0,
        *,
        timeout_s: float = 2.0,
        on_ignored: Callable[[], None] | None = None,
    ) -> None:
        """``on_ignored`` is called whenever ``num_ignored`` grows."""
        self.num_ignored = 0
        """Records that were not believed; each member id counts once while it stays listed."""
        self._secret = secret
        self._clock = clock
        self._lease_ms = round(lease_s * 1000)
        self._timeout_s = timeout_s
        self._on_ignored = on_ignored
        self._ignored_ids: set[str] = set()
        self._redis_ahead_ms: int | None = None
        self._client = Redis.from_url(
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 1)
        )
        self._lease_script = self._client.register_script(_LEASE)
        self._list_script = self._client.register_script(_LIST)

    async def join(self, member: Member, card: ModelCard) -> None:
        """Publish the card if nobody did, then the member."""
        check_card_of(member, card)
        async with self._reaching() as client:
            key = _card_key(member.card_digest)
            if not await client.exists(key):
                await client.set(key, card.to_json(), nx=True, px=_CARD_RETENTION_MS)
            if not await self._lease(member, must_run=False):
                raise StateUnavailable(f"Redis lost the model card {member.card_digest} at once.")

    async def renew(self, member: Member) -> None:
        """Extend the lease, which must still run."""
        async with self._reaching():
            given = await self._lease(member, must_run=True)
        if not given:
            raise NotFound(f"Member {member.member_id} has no lease to renew.")

    async def leave(self, member_id: str) -> None:
        """Withdraw the member."""
        async with self._reaching() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.zrem(_MEMBERS_KEY, member_id)
            pipeline.delete(_member_key(member_id))
            await pipeline.execute()

    async def members(self) -> Sequence[Member]:
        """Return everybody with a lease and a valid signature, in the order of their ids."""
        async with self._reaching() as client:
            now_ms, listed = await self._list_script(keys=[_MEMBERS_KEY])
            member_ids = sorted(_bytes(member_id).decode(errors="replace") for member_id in listed)
            texts = await client.mget([_member_key(member_id) for member_id in member_ids]) if member_ids else []
        self._ignored_ids.intersection_update(member_ids)
        return list(self._believed(zip(member_ids, texts, strict=True), now_ms))

    async def card(self, digest: str) -> ModelCard:
        """Return the card published under ``digest``."""
        async with self._reaching() as client:
            text = await client.get(_card_key(digest))
        if text is None:
            raise NotFound(f"No model card has the digest {digest}.")
        return read_card(_bytes(text), digest)

    async def ask_to_leave(self, member_id: str) -> None:
        """Leave a signed note beside the member's record, which only the member writes."""
        note = sign(self._secret, _NOTE_PURPOSE, member_id.encode())
        async with self._reaching() as client:
            await client.set(_note_key(member_id), note, px=_NOTE_RETENTION_MS)

    async def is_asked_to_leave(self, member_id: str) -> bool:
        """Return whether there is a note with a valid signature."""
        async with self._reaching() as client:
            note = await client.get(_note_key(member_id))
        if note is None:
            return False
        return verify(self._secret, _NOTE_PURPOSE, member_id.encode(), _bytes(note).decode("ascii", "replace"))

    async def close(self) -> None:
        """Close all connections; idempotent."""
        await self._client.aclose()

    async def _lease(self, member: Member, *, must_run: bool) -> bool:
        """Write the member under a new lease; return whether Redis gave it."""
        record = MemberRecord(member, await self._redis_now_ms() + 2 * self._lease_ms)
        now_ms, given = await self._lease_script(
            keys=[_MEMBERS_KEY, _member_key(member.member_id), _card_key(member.card_digest)],
            args=[member.member_id, record.seal(self._secret), self._lease_ms, _CARD_RETENTION_MS, int(must_run)],
        )
        self._redis_ahead_ms = now_ms - self._host_now_ms()
        return bool(given)

    async def _redis_now_ms(self) -> int:
        """Return Redis' time: asked once, then reckoned from the last reply."""
        if self._redis_ahead_ms is None:
            seconds, microseconds = await self._client.time()
            self._redis_ahead_ms = seconds * 1000 + microseconds // 1000 - self._host_now_ms()
        return self._host_now_ms() + self._redis_ahead_ms

    def _host_now_ms(self) -> int:
        return int(self._clock.now() * 1000)

    def _believed(self, texts: Iterable[tuple[str, bytes | str | None]], now_ms: int) -> Iterable[Member]:
        for member_id, text in texts:
            if text is None:  # left between the two reads
                continue
            try:
                yield self._believe(member_id, _bytes(text), now_ms)
            except IntegrityError as error:
                self._ignore(member_id, error.message)

    def _believe(self, member_id: str, text: bytes, now_ms: int) -> Member:
        record = MemberRecord.unseal(text, self._secret)
        if record.member.member_id != member_id:
            raise IntegrityError("record of another member")
        if record.valid_until_ms <= now_ms:
            raise IntegrityError("record of an earlier lease")
        return record.member

    def _ignore(self, member_id: str, reason: str) -> None:
        if member_id not in self._ignored_ids:
            self._ignored_ids.add(member_id)
            self.num_ignored += 1
            if self._on_ignored is not None:
                self._on_ignored()
            _log.warning("member.ignored", member=member_id, reason=reason)

    @asynccontextmanager
    async def _reaching(self) -> AsyncIterator[Redis]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield self._client
        except (RedisError, OSError, TimeoutError) as error:
            raise StateUnavailable(f"Redis cannot be used: {str(error) or type(error).__name__}.") from error


def _member_key(member_id: str) -> str:
    return f"tandem:member:{member_id}"


def _note_key(member_id: str) -> str:
    return f"tandem:drain:{member_id}"


def _card_key(digest: str) -> str:
    return f"tandem:card:{digest}"


def _bytes(value: bytes | str) -> bytes:
    """Return what Redis stored, also when the URL asked for decoded replies."""
    return value.encode() if isinstance(value, str) else value
