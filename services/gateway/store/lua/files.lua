-- Bytes of files (docs/files.md).
--
-- Of a file or a part of an upload:  keys attached .../bytes.<n>   its bytes in order, from n = 0
--                                    field file_bytes              how many

local function bytes_name(ref, place) return attached_name(ref, 'bytes.' .. place) end

-- Bytes that belong to no object yet.
local function is_staged(name) return string.sub(name, 1, 7) == 'staged:' end

-- The bytes under other names become those of an object.
operations.adopt_bytes = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
    for _, source in ipairs(operation.sources) do
      local length = redis.call('STRLEN', PREFIX .. source)
      if length == 0 then return 'lost', source end
      if is_staged(source) then will_use(batch, 'file_bytes', length) end
    end
  end,
  write = function(operation)
    local num_bytes = 0
    for place, source in ipairs(operation.sources) do
      num_bytes = num_bytes + redis.call('STRLEN', PREFIX .. source)
      local name = bytes_name(operation.ref, place - 1)
      redis.call('RENAME', PREFIX .. source, PREFIX .. name)
      redis.call('PERSIST', PREFIX .. name)
      own(operation.ref, name)
    end
    redis.call('HSET', record_key(operation.ref), 'file_bytes', num_bytes)
    use('file_bytes', num_bytes)
    return {}
  end,
}
