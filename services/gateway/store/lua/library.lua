-- Keys and indexes. KEYS[1] is what all keys of the project begin with; every other key is built from it, so that
-- all of them are in one slot of a Redis Cluster. An object is named "<kind>:<id>", a parent likewise or "".
local PREFIX = KEYS[1]

local function record_key(ref) return PREFIX .. 'object:' .. ref end
local function beneath_key(ref) return PREFIX .. 'beneath:' .. ref end
local function gone_key(ref) return PREFIX .. 'gone:' .. ref end
local function kind_of(ref) return string.match(ref, '^[^:]+') end
local function id_of(ref) return string.match(ref, ':(.+)$') end
local function index_name(parent, kind) return 'index:' .. parent .. '/' .. kind end
local function attached_name(ref, name) return 'attached:' .. ref .. '/' .. name end

-- What lies beneath a deleted object does not exist, even if its record was not removed yet.
local function exists(ref)
  local parent = redis.call('HGET', record_key(ref), 'parent')
  return parent == '' or (parent and exists(parent))
end

-- Children of one parent, of all kinds together, have rising numbers; none is used twice.
local function next_sequence(parent)
  if parent == '' then return redis.call('INCR', PREFIX .. 'sequence') end
  return redis.call('HINCRBY', record_key(parent), 'last_child', 1)
end

-- What a project has of something that is counted: 'objects', or 'file_bytes'.
local USAGE = PREFIX .. 'usage'
local function in_use(what) return tonumber(redis.call('HGET', USAGE, what) or '0') end
local function use(what, number)
  if number ~= 0 and redis.call('HINCRBY', USAGE, what, number) == 0 then redis.call('HDEL', USAGE, what) end
end

-- Remember that the key PREFIX .. name is to be deleted with the object.
local function own(ref, name)
  if ref ~= '' then redis.call('SADD', beneath_key(ref), name) end
end

local function disown(ref, name)
  if ref ~= '' then redis.call('SREM', beneath_key(ref), name) end
end

local function add_to_index(parent, name, sequence, id)
  redis.call('ZADD', PREFIX .. name, sequence, id)
  own(parent, name)
end

local function remove_from_index(parent, name, id)
  redis.call('ZREM', PREFIX .. name, id)
  if redis.call('EXISTS', PREFIX .. name) == 0 then disown(parent, name) end
end

-- Labels are stored as "name=value name=value".
local function label_names(parent, kind, labels)
  local names = {}
  for label in string.gmatch(labels or '', '%S+') do names[#names + 1] = index_name(parent, kind) .. '/' .. label end
  return names
end
