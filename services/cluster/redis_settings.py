"""Whether a Redis is set up as the database that it is for Tandem (docs/store.md)."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from services.errors import StateUnavailable

WANTED = {
    "appendonly": ("yes", "what it holds is lost when it ends"),
    "appendfsync": ("always", "what was acknowledged last is lost when its host dies"),
    "maxmemory-policy": ("noeviction", "it deletes objects when its memory is full"),
}
"""Settings, the value that each must have, and what happens otherwise."""


async def weak_settings(redis_url: str, timeout_s: float) -> list[str]:
    """Return a sentence for each setting of a Redis with which it may lose what it acknowledged.

    Raises:
        StateUnavailable: it did not answer, or not in time.
    """
    retry = Retry(NoBackoff(), 1)
    client = Redis.from_url(redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry)
    async with client:
        try:
            given: dict[str | None, str | None] = {}
            for name in WANTED:  # Redis 6.2 takes one name at a time
                given |= await client.config_get(name)
        except ResponseError as error:  # managed services do not let everybody ask
            return [f"Redis does not tell its settings ({error}); see that {_wanted_text()}."]
        except (RedisError, OSError) as error:
            raise StateUnavailable(f"Redis cannot be used: {error}.") from error
    return [
        f"Redis has {name} {given.get(name, 'unknown')}, so {harm}; set it to {wanted}."
        for name, (wanted, harm) in WANTED.items()
        if given.get(name) != wanted
    ]


def _wanted_text() -> str:
    return ", ".join(f"{name} is {wanted}" for name, (wanted, _) in WANTED.items())
