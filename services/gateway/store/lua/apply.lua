-- Make one change: all of its operations, or none. ARGV: a token of this change, the operations as JSON, their payloads;
-- an operation names a payload by its place in ARGV. Returns JSON: {"refused": [place, problem, detail]} or
-- {"done": [what each operation returned]}. The same token again within DONE_S gets the same answer and writes nothing,
-- so that a call whose answer was lost can be repeated.
local DONE_S = 60
local done_key = PREFIX .. 'done:' .. ARGV[1]
local answered = redis.call('GET', done_key)
if answered then return answered end

local change = cjson.decode(ARGV[2])
local batch = {created = {}, deleted = {}}
for place, operation in ipairs(change) do
  local problem, detail = operations[operation.name].check(operation, batch)
  if problem then return cjson.encode({refused = {place - 1, problem, detail}}) end
end

-- What is created beneath an object that this change deletes goes with it.
local done = {}
for _, is_last in ipairs({false, true}) do
  for place, operation in ipairs(change) do
    if (operations[operation.name].is_last or false) == is_last then
      done[place] = operations[operation.name].write(operation)
    end
  end
end
local answer = cjson.encode({done = done})
redis.call('SET', done_key, answer, 'EX', DONE_S)
return answer
