-- Removal of what was deleted, in slices: Redis does nothing else meanwhile. A deleted object has no record, so that all
-- beneath it is absent at once (see exists); what one slice does not remove is left to upkeep.
--
-- Of a project:  key deleting   set of deleted objects beneath which something is left
local DELETING = PREFIX .. 'deleting'
local SLICE = 1000  -- objects and keys that are removed at once

-- By kind: what else has to be done when an object goes.
local farewells = {}

-- An id stays taken until nothing is left of the object that had it.
local function is_taken(ref)
  return redis.call('EXISTS', record_key(ref)) == 1 or redis.call('SISMEMBER', DELETING, ref) == 1
end

local function remove_record(ref)
  local say_farewell = farewells[kind_of(ref)]
  if say_farewell then say_farewell(ref) end
  use('objects', -1)
  use('file_bytes', -tonumber(redis.call('HGET', record_key(ref), 'file_bytes') or '0'))
  redis.call('UNLINK', record_key(ref))
end

-- Remove what is beneath an object, in so many steps at most. Returns how many steps are left: with none, something else
-- may be.
local function clear(ref, steps)
  while steps > 0 do
    local name = redis.call('SRANDMEMBER', beneath_key(ref))
    if not name then return steps end
    local kind = string.match(name, '^index:[^/]*/([^/]+)$')
    local ids = kind and redis.call('ZRANGE', PREFIX .. name, 0, steps - 1) or {}
    local num_removed = 0
    for _, id in ipairs(ids) do
      steps = clear(kind .. ':' .. id, steps)
      if steps == 0 then break end
      remove_record(kind .. ':' .. id)
      num_removed, steps = num_removed + 1, steps - 1
    end
    if num_removed > 0 then redis.call('ZREMRANGEBYRANK', PREFIX .. name, 0, num_removed - 1) end
    if steps == 0 then return 0 end
    redis.call('UNLINK', PREFIX .. name)
    disown(ref, name)
    steps = steps - 1
  end
  return 0
end
