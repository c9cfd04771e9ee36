-- Runs: at most one active run per thread, and at most one gateway that may write a run (docs/runs.md).
--
-- Of a thread:  field active_run   the run that holds the thread
--               key   attached .../waiting_runs   a list of the runs that wait for it
-- Of a run:     field fence        grows with each gateway that takes the run; older gateways are refused
--               field owner        that gateway
--               field last_event   number of the last event
--               key   attached .../events         a stream; the entry of event 7 has the id 7-0
-- Of a project: key   due          sorted set of all runs that have not ended, by the time (ms) at which any gateway may
--                                  take them: the end of a lease, or the moment at which they expire
local DUE = PREFIX .. 'due'

local function active_run(thread) return redis.call('HGET', record_key(thread), 'active_run') end
local function waiting_name(thread) return attached_name(thread, 'waiting_runs') end
local function events_name(run) return attached_name(run, 'events') end

-- Nothing but the thread's run may change its messages.
operations.require_idle_thread = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
    local run = active_run(operation.ref)
    if run then return 'active', id_of(run) end
  end,
  write = function() return {} end,
}

-- Give the thread to a run, or let the run wait for it.
operations.claim_thread = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
    local run = active_run(operation.ref)
    if run and not operation.may_wait then return 'active', id_of(run) end
  end,
  write = function(operation)
    local thread = operation.ref
    if not active_run(thread) then
      redis.call('HSET', record_key(thread), 'active_run', operation.run)
      return {waits = false}
    end
    redis.call('RPUSH', PREFIX .. waiting_name(thread), operation.run)
    own(thread, waiting_name(thread))
    return {waits = true}
  end,
}

-- The thread goes to the run that waits longest, if there is one; it is due at once.
local function release_thread(thread, run, now_ms)
  if active_run(thread) ~= run then
    redis.call('LREM', PREFIX .. waiting_name(thread), 0, run)
    return nil
  end
  local heir = redis.call('LPOP', PREFIX .. waiting_name(thread))
  if not heir then
    redis.call('HDEL', record_key(thread), 'active_run')
    return nil
  end
  redis.call('HSET', record_key(thread), 'active_run', heir)
  redis.call('ZADD', DUE, now_ms, heir)
  return id_of(heir)
end

-- Become the one gateway that may write the run.
operations.take_run = {
  check = function(operation)
    local ref = operation.ref
    if not exists(ref) then return 'absent', ref end
    local due = redis.call('ZSCORE', DUE, ref)
    if not due then return 'ended', ref end
    if not operation.is_forced and tonumber(due) > operation.now_ms then return 'held', ref end
  end,
  write = function(operation)
    local ref = operation.ref
    redis.call('HSET', record_key(ref), 'owner', operation.owner)
    redis.call('ZADD', DUE, operation.until_ms, ref)
    return {fence = redis.call('HINCRBY', record_key(ref), 'fence', 1)}
  end,
}

-- Forget a run that was deleted with its thread.
operations.forget_run = {
  check = function() end,
  write = function(operation)
    if not exists(operation.ref) then redis.call('ZREM', DUE, operation.ref) end
    return {}
  end,
}

local function append(operation)
  local name = events_name(operation.ref)
  for place, event in ipairs(operation.events) do
    local fields = {'event', event.name, 'data', ARGV[event.data]}
    if event.progress then
      fields[#fields + 1] = 'progress'
      fields[#fields + 1] = ARGV[event.progress]
    end
    redis.call('XADD', PREFIX .. name, (operation.first_event + place - 1) .. '-0', unpack(fields))
  end
  redis.call('HSET', record_key(operation.ref), 'last_event', operation.first_event + #operation.events - 1)
  if operation.first_event == 1 then own(operation.ref, name) end
  if operation.first_event == 1 or not operation.due_ms then
    redis.call('PEXPIRE', PREFIX .. name, operation.retention_ms)
  end
end

-- Write a run's state and events together, as the gateway that holds it: events, body and private, as far as they are
-- given. due_ms says when others may take the run; without it the run has ended.
operations.write_run = {
  check = function(operation, batch)
    local ref = operation.ref
    if batch.created[ref] then return end
    if not exists(ref) then return 'absent', ref end
    local values = redis.call('HMGET', record_key(ref), 'fence', 'version', 'last_event')
    if tonumber(values[1]) ~= operation.fence then return 'fence', values[1] end
    if #operation.events > 0 and tonumber(values[3]) + 1 ~= operation.first_event then return 'position', values[3] end
    if operation.body and tonumber(values[2]) ~= operation.version then return 'version', values[2] end
  end,
  write = function(operation)
    local ref, key, answer = operation.ref, record_key(operation.ref), {}
    redis.call('HSET', key, 'fence', operation.fence, 'owner', operation.owner)
    if operation.body then
      redis.call('HSET', key, 'body', ARGV[operation.body])
      answer.version = redis.call('HINCRBY', key, 'version', 1)
    end
    if operation.private then redis.call('HSET', key, 'private', ARGV[operation.private]) end
    if #operation.events > 0 then append(operation) end
    local thread = redis.call('HGET', key, 'parent')
    if operation.due_ms then
      local due_ms = operation.due_ms
      if active_run(thread) ~= ref then due_ms = operation.expires_ms end
      redis.call('ZADD', DUE, due_ms, ref)
    else
      redis.call('ZREM', DUE, ref)
      answer.heir = release_thread(thread, ref, operation.now_ms)
    end
    return answer
  end,
}
