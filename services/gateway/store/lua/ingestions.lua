-- Files of vector stores: one gateway at a time indexes a file, and what it wrote is gone on with by the next one
-- (docs/files.md). The lease of a file is in the queue "ingestions".
--
-- Of a file of a store:  field space     the embedding model that its vectors are of
--                        key attached .../chunks    hash: number of a chunk -> JSON
--                        key attached .../vectors   float32, one vector after the other
--                        key attached .../owners    uint32 for each vector: the chunk that it is of
-- Of a vector store:     field index_version        grows when a search may find something else
--                        field usage_bytes
-- Of a file:             key attached .../stores    set of the files of stores that are made of it
local INGESTIONS = PREFIX .. 'ingestions'

-- A file of a store goes: the file that it is made of knows of it no longer.
farewells.vector_store_file = function(ref)
  local file = 'file:' .. string.match(ref, '%.(.+)$')
  local name = attached_name(file, 'stores')
  redis.call('SREM', PREFIX .. name, ref)
  if redis.call('EXISTS', PREFIX .. name) == 0 then disown(file, name) end
end

local function index_key(ref, name) return PREFIX .. attached_name(ref, name) end

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

local function discard_chunks(ref)
  redis.call('UNLINK', index_key(ref, 'chunks'), index_key(ref, 'vectors'), index_key(ref, 'owners'))
end

-- What was made of a file that will not be indexed to its end.
operations.discard_chunks = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
  end,
  write = function(operation)
    discard_chunks(operation.ref)
    return {}
  end,
}

-- A file that is in its store already becomes like one that was added now: what was made of it goes, whoever indexes it
-- is refused, and it has a new number, by which gateways see that it has other vectors.
operations.renew_stored_file = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
  end,
  write = function(operation)
    local ref = operation.ref
    discard_chunks(ref)
    redis.call('HDEL', record_key(ref), 'takes')
    redis.call('HINCRBY', record_key(ref), 'fence', 1)
    renumber(ref)
    return {}
  end,
}

-- Say which model the vectors will be of; what there is of another one goes. Returns how many chunks there are.
operations.begin_chunks = {
  check = check_fence,
  write = function(operation)
    local ref = operation.ref
    if redis.call('HGET', record_key(ref), 'space') ~= operation.space then
      discard_chunks(ref)
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
