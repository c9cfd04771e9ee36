"""The share ledger in Redis: one hash per limit, one script.

tandem:shares:<limit>   hash: holder -> "<held> <wanted> <end of the lease, milliseconds of Redis' clock>"
"""

from collections.abc import Collection, Mapping

from services.gateway.admission.ledger import LEASE_S, Ask, Grant
from services.gateway.redis_state import RedisState

# KEYS: one per limit. ARGV: holder, lease_ms, then total, in_use and wanted for each limit.
# Returns share and number of holders for each limit, in one flat list. Same arithmetic as MemoryShareLedger.
_EXCHANGE = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local holder, lease_ms = ARGV[1], tonumber(ARGV[2])
local reply = {}
for index, key in ipairs(KEYS) do
  local total = tonumber(ARGV[3 * index])
  local in_use = tonumber(ARGV[3 * index + 1])
  local wanted = tonumber(ARGV[3 * index + 2])
  local wishes, free = {{wanted, holder}}, total
  local fields = redis.call('HGETALL', key)
  for field = 1, #fields, 2 do
    local held, wish, ends_ms = string.match(fields[field + 1], '(%d+) (%d+) (%d+)')
    if tonumber(ends_ms) <= now_ms then
      redis.call('HDEL', key, fields[field])
    elseif fields[field] ~= holder then
      free = free - tonumber(held)
      wishes[#wishes + 1] = {tonumber(wish), fields[field]}
    end
  end
  table.sort(wishes, function(one, other)
    return one[1] < other[1] or (one[1] == other[1] and one[2] < other[2])
  end)
  local left, given = total, 0
  for place, wish in ipairs(wishes) do
    local part = math.min(wish[1], math.floor(left / (#wishes - place + 1)))
    left = left - part
    if wish[2] == holder then given = part end
  end
  local share = math.max(0, math.min(given + math.floor(left / #wishes), free))
  local held = math.max(share, math.min(in_use, total))
  redis.call('HSET', key, holder, string.format('%.0f %.0f %.0f', held, wanted, now_ms + lease_ms))
  redis.call('PEXPIRE', key, lease_ms)
  reply[#reply + 1] = share
  reply[#reply + 1] = #wishes
end
return reply
"""


class RedisShareLedger:
    """A ledger that all gateways on one Redis share."""

    def __init__(self, state: RedisState, lease_s: float = LEASE_S) -> None:
        self._state = state
        self._lease_ms = round(1e3 * lease_s)

    async def exchange(self, holder: str, asks: Mapping[str, Ask]) -> Mapping[str, Grant]:
        """Replace what ``holder`` holds of the limits named, under a new lease."""
        numbers = [number for ask in asks.values() for number in (ask.total, ask.in_use, ask.wanted)]
        async with self._state.reaching() as client:
            exchange = client.register_script(_EXCHANGE)
            reply = await exchange(keys=[_key(name) for name in asks], args=[holder, self._lease_ms, *numbers])
        return {name: Grant(*reply[2 * index : 2 * index + 2]) for index, name in enumerate(asks)}

    async def leave(self, holder: str, names: Collection[str]) -> None:
        """Give back everything that ``holder`` has of the limits named."""
        async with self._state.reaching() as client, client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hdel(_key(name), holder)
            await pipeline.execute()


def _key(name: str) -> str:
    return f"tandem:shares:{name}"
