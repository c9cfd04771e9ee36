-- Files of vector stores: at most one gateway indexes a file, and what it wrote is gone on with by the next one
-- (docs/files.md).
--
-- Of a file of a store:  field fence     grows with each gateway that takes the file; older gateways are refused
--                        field space     the embedding model that its vectors are of
--                        key attached .../chunks    hash: number of a chunk -> JSON
--                        key attached .../vectors   float32, one vector after the other
--                        key attached .../owners    uint32 for each vector: the chunk that it is of
-- Of a vector store:     field index_version        grows when a search may find something else
--                        field usage_bytes
-- Of a file:             key attached .../stores    set of the files of stores that are made of it
-- Of a project:          key ingestions             sorted set of files that are not indexed yet, by the time (ms) at
--                                                   which any gateway may take them: the end of a lease
local INGESTIONS = PREFIX .. 'ingestions'

local function index_key(ref, name) return PREFIX .. attached_name(ref, name) end

local function check_fence(operation)
  local ref = operation.ref
  if not exists(ref) then return 'absent', ref end
  local fence = redis.call('HGET', record_key(ref), 'fence') or '0'
  if tonumber(fence) ~= operation.fence then return 'fence', fence end
end

operations.enqueue_ingestion = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
    if not will_exist(batch, operation.file) then return 'absent', operation.file end
  end,
  write = function(operation)
    redis.call('ZADD', INGESTIONS, operation.now_ms, operation.ref)
    local name = attached_name(operation.file, 'stores')
    redis.call('SADD', PREFIX .. name, operation.ref)
    own(operation.file, name)
    return {}
  end,
}

-- Become the one gateway that may index the file.
operations.take_ingestion = {
  check = function(operation)
    local ref = operation.ref
    if not exists(ref) then return 'absent', ref end
    local due = redis.call('ZSCORE', INGESTIONS, ref)
    if not due then return 'ended', ref end
    if tonumber(due) > operation.now_ms then return 'held', ref end
  end,
  write = function(operation)
    redis.call('ZADD', INGESTIONS, operation.until_ms, operation.ref)
    return {fence = redis.call('HINCRBY', record_key(operation.ref), 'fence', 1)}
  end,
}

operations.renew_ingestion = {
  check = check_fence,
  write = function(operation)
    redis.call('ZADD', INGESTIONS, 'XX', operation.until_ms, operation.ref)
    return {}
  end,
}

-- Say which model the vectors will be of; what there is of another one goes. Returns how many chunks there are.
operations.begin_chunks = {
  check = check_fence,
  write = function(operation)
    local ref = operation.ref
    if redis.call('HGET', record_key(ref), 'space') ~= operation.space then
      redis.call('UNLINK', index_key(ref, 'chunks'), index_key(ref, 'vectors'), index_key(ref, 'owners'))
      redis.call('HSET', record_key(ref), 'space', operation.space)
    end
    return {num_chunks = redis.call('HLEN', index_key(ref, 'chunks'))}
  end,
}

operations.write_chunks = {
  check = function(operation)
    local problem, detail = check_fence(operation)
    if problem then return problem, detail end
    local num_chunks = redis.call('HLEN', index_key(operation.ref, 'chunks'))
    if num_chunks ~= operation.first then return 'position', tostring(num_chunks) end
  end,
  write = function(operation)
    local ref = operation.ref
    for place, payload in ipairs(operation.chunks) do
      redis.call('HSET', index_key(ref, 'chunks'), operation.first + place - 1, ARGV[payload])
    end
    redis.call('APPEND', index_key(ref, 'vectors'), ARGV[operation.vectors])
    redis.call('APPEND', index_key(ref, 'owners'), ARGV[operation.owners])
    for _, name in ipairs({'chunks', 'vectors', 'owners'}) do own(ref, attached_name(ref, name)) end
    redis.call('ZADD', INGESTIONS, 'XX', operation.until_ms, ref)
    return {}
  end,
}

-- Nobody shall go on with the file: the gateway that holds it says so, or, without a fence, anybody.
operations.end_ingestion = {
  check = function(operation)
    if operation.fence then return check_fence(operation) end
    if not exists(operation.ref) then return 'absent', operation.ref end
  end,
  write = function(operation)
    redis.call('ZREM', INGESTIONS, operation.ref)
    redis.call('HINCRBY', record_key(operation.ref), 'fence', 1)
    return {}
  end,
}

operations.forget_ingestion = {
  check = function() end,
  write = function(operation)
    if not exists(operation.ref) then redis.call('ZREM', INGESTIONS, operation.ref) end
    return {}
  end,
}

operations.touch_index = {
  check = function() end,
  write = function(operation)
    local ref = operation.ref
    if not exists(ref) then return {} end
    redis.call('HINCRBY', record_key(ref), 'index_version', 1)
    redis.call('HINCRBY', record_key(ref), 'usage_bytes', operation.added_bytes)
    return {}
  end,
}
