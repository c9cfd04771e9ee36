-- Objects that expire.
--
-- Of a project:  key expiring   sorted set of objects by the time (ms) of their end
local EXPIRING = PREFIX .. 'expiring'

-- Let an object end at a time, or not at all.
operations.expire_at = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
  end,
  write = function(operation)
    if operation.at_ms then
      redis.call('ZADD', EXPIRING, operation.at_ms, operation.ref)
    else
      redis.call('ZREM', EXPIRING, operation.ref)
    end
    return {}
  end,
}

-- The time of an object is over, which may have been put off since it was found due.
operations.require_due = {
  check = function(operation)
    if not exists(operation.ref) then return 'absent', operation.ref end
    local at_ms = redis.call('ZSCORE', EXPIRING, operation.ref)
    if not at_ms or tonumber(at_ms) > operation.now_ms then return 'not_due', operation.ref end
  end,
  write = function() return {} end,
}

-- Forget the end of an object that is gone already.
operations.forget_expiry = {
  check = function() end,
  write = function(operation)
    if not exists(operation.ref) then redis.call('ZREM', EXPIRING, operation.ref) end
    return {}
  end,
}
