-- Leases: at most one gateway works on an object, and one that lost it can write no more (docs/store.md).
--
-- Of an object:  field fence     grows with each gateway that takes it; older gateways are refused
--                field takes     how often it was taken
-- Of a project:  key <queue>     sorted set of the objects that somebody has to work on, by the time (ms) at which any
--                                gateway may take them: the end of a lease, or a moment to wait for
local function queue_key(operation) return PREFIX .. operation.queue end

local function check_fence(operation)
  local ref = operation.ref
  if not exists(ref) then return 'absent', ref end
  local fence = redis.call('HGET', record_key(ref), 'fence') or '0'
  if tonumber(fence) ~= operation.fence then return 'fence', fence end
end

-- Become the one gateway that may write the object. An object that is due later than the new lease ends, as it waits for
-- something, goes on waiting: taking it says who may write it, not that others should work on it.
operations.take_lease = {
  check = function(operation)
    local ref = operation.ref
    if not exists(ref) then return 'absent', ref end
    local due = redis.call('ZSCORE', queue_key(operation), ref)
    if not due then return 'ended', ref end
    if not operation.is_forced and tonumber(due) > operation.now_ms then return 'held', ref end
  end,
  write = function(operation)
    redis.call('ZADD', queue_key(operation), 'GT', operation.until_ms, operation.ref)
    local key = record_key(operation.ref)
    return {fence = redis.call('HINCRBY', key, 'fence', 1), takes = redis.call('HINCRBY', key, 'takes', 1)}
  end,
}

operations.renew_lease = {
  check = check_fence,
  write = function(operation)
    redis.call('ZADD', queue_key(operation), 'XX', operation.until_ms, operation.ref)
    return {}
  end,
}

-- Nobody shall work on the object any more: the gateway that holds it says so, or, without a fence, anybody.
operations.end_lease = {
  check = function(operation)
    if operation.fence then return check_fence(operation) end
    if not exists(operation.ref) then return 'absent', operation.ref end
  end,
  write = function(operation)
    redis.call('ZREM', queue_key(operation), operation.ref)
    redis.call('HINCRBY', record_key(operation.ref), 'fence', 1)
    return {}
  end,
}

-- Forget an object that was deleted while somebody had to work on it.
operations.forget_lease = {
  check = function() end,
  write = function(operation)
    if not exists(operation.ref) then redis.call('ZREM', queue_key(operation), operation.ref) end
    return {}
  end,
}
