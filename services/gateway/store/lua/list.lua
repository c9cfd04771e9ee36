-- One page of an index. ARGV: parent, kind, label ("" for none), order, limit, after, before, whether with private data.
-- Returns {problem, detail} or {"", more (0 or 1), {id, body, version, sequence, private} ...}.
local parent, kind, label, order = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local limit, after, before, with_private = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8] == '1'

if parent ~= '' and not exists(parent) then return {'no_parent', parent} end
local whole = PREFIX .. index_name(parent, kind)
local index = whole
if label ~= '' then index = whole .. '/' .. label end

-- Where a cursor stands; an object deleted a short time ago still tells where it stood.
local function position(id)
  local ref = kind .. ':' .. id
  local found = redis.call('ZSCORE', whole, id)
  if found then return found end
  local gone = redis.call('HMGET', gone_key(ref), 'parent', 'sequence')
  if gone[1] == parent then return gone[2] end
  return nil
end

local bounds = {after = false, before = false}
for name, id in pairs({after = after, before = before}) do
  if id ~= '' then
    local found = position(id)
    if not found then return {'no_cursor', id} end
    bounds[name] = '(' .. found
  end
end

-- With only "before", the page is the one that ends just before the cursor: it is read backwards.
local is_backwards = before ~= '' and after == ''
local low, high = bounds.after, bounds.before
if order == 'desc' then low, high = bounds.before, bounds.after end
low, high = low or '-inf', high or '+inf'
local ids
if (order == 'asc') ~= is_backwards then
  ids = redis.call('ZRANGEBYSCORE', index, low, high, 'LIMIT', 0, limit + 1)
else
  ids = redis.call('ZREVRANGEBYSCORE', index, high, low, 'LIMIT', 0, limit + 1)
end
local has_more = #ids > limit
if has_more then ids[#ids] = nil end

local reply = {'', has_more and 1 or 0}
for place = 1, #ids do
  local id = is_backwards and ids[#ids - place + 1] or ids[place]
  local key = record_key(kind .. ':' .. id)
  local values = redis.call('HMGET', key, 'body', 'version', 'sequence')
  local private = with_private and redis.call('HGET', key, 'private')
  if values[1] then reply[#reply + 1] = {id, values[1], values[2], values[3], private} end
end
return reply
