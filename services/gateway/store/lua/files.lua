-- Bytes of files, and objects that expire (docs/files.md).
--
-- Of a file or a part of an upload:  keys attached .../bytes.<n>   its bytes in order, from n = 0
-- Of a project:                      key  expiring                  sorted set of objects by the time (ms) of their end
local EXPIRING = PREFIX .. 'expiring'

local function bytes_name(ref, place) return attached_name(ref, 'bytes.' .. place) end

-- The bytes under other names become those of an object.
operations.adopt_bytes = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
    for _, source in ipairs(operation.sources) do
      if redis.call('EXISTS', PREFIX .. source) == 0 then return 'lost', source end
    end
  end,
  write = function(operation)
    for place, source in ipairs(operation.sources) do
      local name = bytes_name(operation.ref, place - 1)
      redis.call('RENAME', PREFIX .. source, PREFIX .. name)
      redis.call('PERSIST', PREFIX .. name)
      own(operation.ref, name)
    end
    return {}
  end,
}

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

-- Forget the end of an object that is gone already.
operations.forget_expiry = {
  check = function() end,
  write = function(operation)
    if not exists(operation.ref) then redis.call('ZREM', EXPIRING, operation.ref) end
    return {}
  end,
}
