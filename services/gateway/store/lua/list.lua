-- One page of a list, which ends where its objects would have more than PAGE_BYTES, but has one. ARGV: parent, kinds ("message" or "message,item"), label ("" for none), order, limit, after, before,
-- whether with private data. Returns {problem, detail} or
-- {"", more (0 or 1), {kind, id, body, version, sequence, private} ...}.
local PAGE_BYTES = 8 * 1048576
local parent, label, order = ARGV[1], ARGV[3], ARGV[4]
local limit, after, before, with_private = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8] == '1'
local kinds = {}
for kind in string.gmatch(ARGV[2], '[^,]+') do kinds[#kinds + 1] = kind end

if parent ~= '' and not exists(parent) then return {'no_parent', parent} end

-- Where a cursor stands; an object deleted a short time ago still tells where it stood.
local function position(id)
  for _, kind in ipairs(kinds) do
    local found = redis.call('ZSCORE', PREFIX .. index_name(parent, kind), id)
    if found then return found end
    local gone = redis.call('HMGET', gone_key(kind .. ':' .. id), 'parent', 'sequence')
    if gone[1] == parent then return gone[2] end
  end
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
local is_rising = (order == 'asc') ~= is_backwards

local found = {}
for _, kind in ipairs(kinds) do
  local index, ids = PREFIX .. index_name(parent, kind), nil
  if label ~= '' then index = index .. '/' .. label end
  if is_rising then
    ids = redis.call('ZRANGEBYSCORE', index, low, high, 'WITHSCORES', 'LIMIT', 0, limit + 1)
  else
    ids = redis.call('ZREVRANGEBYSCORE', index, high, low, 'WITHSCORES', 'LIMIT', 0, limit + 1)
  end
  for place = 1, #ids, 2 do found[#found + 1] = {kind, ids[place], tonumber(ids[place + 1])} end
end
if #kinds > 1 then
  table.sort(found, function(one, other) return (one[3] < other[3]) == is_rising and one[3] ~= other[3] end)
end

local rows, num_bytes, has_more = {}, 0, #found > limit
for place = 1, math.min(#found, limit) do
  local kind, id = unpack(found[place])
  local key = record_key(kind .. ':' .. id)
  local values = redis.call('HMGET', key, 'body', 'version', 'sequence')
  local private = with_private and redis.call('HGET', key, 'private')
  if values[1] then
    num_bytes = num_bytes + #values[1] + #(private or '')
    if #rows > 0 and num_bytes > PAGE_BYTES then
      has_more = true
      break
    end
    rows[#rows + 1] = {kind, id, values[1], values[2], values[3], private}
  end
end

local reply = {'', has_more and 1 or 0}
for place = 1, #rows do reply[#reply + 1] = rows[is_backwards and #rows - place + 1 or place] end
return reply
