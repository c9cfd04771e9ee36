-- Bytes of files (docs/files.md).
--
-- Of a file or a part of an upload:  keys attached .../bytes.<n>   its bytes in order, from n = 0
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
