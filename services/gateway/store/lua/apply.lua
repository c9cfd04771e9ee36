-- Make one change: all of its operations, or none. ARGV: a token of this change, JSON {"operations": [...]}, its payloads;
-- an operation names a payload by its place in ARGV. With "quota": {what: limit} the change must not make the project
-- have more than that. Returns JSON: {"refused": [place, problem, detail]}, {"over_quota": [what, number in use]} or
-- {"done": [what each operation returned]}. The same token again within DONE_S gets the same answer and writes nothing,
-- so that a call whose answer was lost can be repeated.
local DONE_S = 60
local done_key = PREFIX .. 'done:' .. ARGV[1]
local answered = redis.call('GET', done_key)
if answered then return answered end

local change = cjson.decode(ARGV[2])
local batch = {created = {}, deleted = {}, adds = {}}
for place, operation in ipairs(change.operations) do
  local problem, detail = operations[operation.name].check(operation, batch)
  if problem then return cjson.encode({refused = {place - 1, problem, detail}}) end
end
for what, limit in pairs(change.quota or {}) do
  local added, used = batch.adds[what] or 0, in_use(what)
  if added > 0 and used + added > limit then return cjson.encode({over_quota = {what, used}}) end
end

-- What is created beneath an object that this change deletes goes with it.
local done = {}
for _, is_last in ipairs({false, true}) do
  for place, operation in ipairs(change.operations) do
    if (operations[operation.name].is_last or false) == is_last then
      done[place] = operations[operation.name].write(operation)
    end
  end
end
local answer = cjson.encode({done = done})
redis.call('SET', done_key, answer, 'EX', DONE_S)
return answer
