-- The operations of one change. Each has "check", which writes nothing and returns a problem and a detail or nil, and
-- "write", which cannot fail and returns a table. "batch" tells what earlier operations of the change will do:
-- batch.created and batch.deleted, by object, and batch.adds, how much more the project will have.
local operations = {}

local function will_use(batch, what, number) batch.adds[what] = (batch.adds[what] or 0) + number end

local function will_exist(batch, ref)
  return batch.created[ref] or (exists(ref) and not batch.deleted[ref])
end

-- The object is there, beneath that parent and in that version, as far as the operation names them.
local function check_present(operation, batch)
  local ref = operation.ref
  if batch.deleted[ref] or not exists(ref) then return 'absent', ref end
  local values = redis.call('HMGET', record_key(ref), 'parent', 'version')
  if operation.parent and values[1] ~= operation.parent then return 'absent', ref end
  if operation.version and tonumber(values[2]) ~= operation.version then return 'version', values[2] end
end

operations.create = {
  check = function(operation, batch)
    local ref, parent = operation.ref, operation.parent
    if batch.created[ref] or is_taken(ref) then return 'exists', ref end
    if parent ~= '' and not will_exist(batch, parent) then return 'no_parent', parent end
    batch.created[ref] = true
    will_use(batch, 'objects', 1)
  end,
  write = function(operation)
    local ref, parent = operation.ref, operation.parent
    local kind, id, key = kind_of(ref), id_of(ref), record_key(ref)
    local sequence = next_sequence(parent)
    use('objects', 1)
    redis.call('HSET', key, 'body', ARGV[operation.body], 'version', 1, 'sequence', sequence, 'parent', parent,
      'labels', operation.labels)
    if operation.private then redis.call('HSET', key, 'private', ARGV[operation.private]) end
    add_to_index(parent, index_name(parent, kind), sequence, id)
    for _, name in ipairs(label_names(parent, kind, operation.labels)) do add_to_index(parent, name, sequence, id) end
    return {version = 1, sequence = sequence}
  end,
}

local function relabel(ref, parent, sequence, labels)
  local kind, id = kind_of(ref), id_of(ref)
  for _, name in ipairs(label_names(parent, kind, redis.call('HGET', record_key(ref), 'labels'))) do
    remove_from_index(parent, name, id)
  end
  for _, name in ipairs(label_names(parent, kind, labels)) do add_to_index(parent, name, sequence, id) end
  redis.call('HSET', record_key(ref), 'labels', labels)
end

-- Make an object the last one of its parent, as if it were new.
local function renumber(ref)
  local values = redis.call('HMGET', record_key(ref), 'parent', 'labels')
  local sequence = next_sequence(values[1])
  redis.call('HSET', record_key(ref), 'sequence', sequence)
  add_to_index(values[1], index_name(values[1], kind_of(ref)), sequence, id_of(ref))
  relabel(ref, values[1], sequence, values[2])
end

operations.update = {
  check = check_present,
  write = function(operation)
    local ref, key = operation.ref, record_key(operation.ref)
    local values = redis.call('HMGET', key, 'parent', 'sequence')
    local version = redis.call('HINCRBY', key, 'version', 1)
    redis.call('HSET', key, 'body', ARGV[operation.body])
    if operation.private then redis.call('HSET', key, 'private', ARGV[operation.private]) end
    if operation.labels then relabel(ref, values[1], values[2], operation.labels) end
    return {version = version, sequence = tonumber(values[2])}
  end,
}

local GONE_S = 3600

operations.delete = {
  is_last = true,
  check = function(operation, batch)
    local problem, detail = check_present(operation, batch)
    if problem then return problem, detail end
    batch.deleted[operation.ref] = true
  end,
  write = function(operation)
    local ref = operation.ref
    local values = redis.call('HMGET', record_key(ref), 'parent', 'sequence', 'labels')
    if not values[1] then return {} end
    local parent, kind, id = values[1], kind_of(ref), id_of(ref)
    for _, name in ipairs(label_names(parent, kind, values[3])) do remove_from_index(parent, name, id) end
    remove_from_index(parent, index_name(parent, kind), id)
    if clear(ref, SLICE) == 0 then redis.call('SADD', DELETING, ref) end
    remove_record(ref)
    redis.call('HSET', gone_key(ref), 'parent', parent, 'sequence', values[2])
    redis.call('EXPIRE', gone_key(ref), GONE_S)
    return {}
  end,
}
