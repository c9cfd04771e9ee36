-- Jobs, which are runs and responses: what they say is kept as a log of events, and one that works on a thread has it
-- for itself (docs/runs.md). Their lease is in the queue "jobs".
--
-- Of a thread:  field active_job   the job that holds the thread
--               key   attached .../waiting_jobs   a list of the jobs that wait for it
-- Of a job:     field claim        that thread, if it needs one
--               field expires_ms   when its time is over
--               field last_event   number of the last event
--               key   attached .../events         a stream; the entry of event 7 has the id 7-0
local JOBS = PREFIX .. 'jobs'

local function active_job(thread) return redis.call('HGET', record_key(thread), 'active_job') end
local function waiting_name(thread) return attached_name(thread, 'waiting_jobs') end
local function events_name(job) return attached_name(job, 'events') end

-- Nothing but the thread's job may change its messages.
operations.require_idle_thread = {
  check = function(operation, batch)
    if not will_exist(batch, operation.ref) then return 'absent', operation.ref end
    local job = active_job(operation.ref)
    if job then return 'active', id_of(job) end
  end,
  write = function() return {} end,
}

-- Give the thread to a job that the same change creates, or let the job wait for it. With last_child, only if nothing
-- came into the thread since that number.
operations.claim_thread = {
  check = function(operation, batch)
    local thread = operation.ref
    if not will_exist(batch, thread) then return 'absent', thread end
    local job = active_job(thread)
    if job and not operation.may_wait then return 'active', id_of(job) end
    local last_child = redis.call('HGET', record_key(thread), 'last_child') or '0'
    if operation.last_child and tonumber(last_child) ~= operation.last_child then return 'moved', last_child end
  end,
  write = function(operation)
    local thread = operation.ref
    redis.call('HSET', record_key(operation.job), 'claim', thread)
    if not active_job(thread) then
      redis.call('HSET', record_key(thread), 'active_job', operation.job)
      return {waits = false}
    end
    redis.call('RPUSH', PREFIX .. waiting_name(thread), operation.job)
    own(thread, waiting_name(thread))
    return {waits = true}
  end,
}

-- The thread goes to the job that waits longest, if there is one; it is due at once.
local function release_thread(thread, job, now_ms)
  if active_job(thread) ~= job then
    redis.call('LREM', PREFIX .. waiting_name(thread), 0, job)
    return nil
  end
  local heir = redis.call('LPOP', PREFIX .. waiting_name(thread))
  if not heir then
    redis.call('HDEL', record_key(thread), 'active_job')
    return nil
  end
  redis.call('HSET', record_key(thread), 'active_job', heir)
  redis.call('ZADD', JOBS, now_ms, heir)
  return heir
end

local function append(operation)
  local name = events_name(operation.ref)
  for place, event in ipairs(operation.events) do
    local fields = {'event', event.name, 'data', ARGV[event.data]}
    if event.progress then
      fields[#fields + 1] = 'progress'
      fields[#fields + 1] = ARGV[event.progress]
    end
    if event.pauses_job then
      fields[#fields + 1] = 'pauses_job'
      fields[#fields + 1] = '1'
    end
    redis.call('XADD', PREFIX .. name, (operation.first_event + place - 1) .. '-0', unpack(fields))
  end
  redis.call('HSET', record_key(operation.ref), 'last_event', operation.first_event + #operation.events - 1)
  if operation.first_event == 1 then own(operation.ref, name) end
  if operation.first_event == 1 or not operation.due_ms then
    redis.call('PEXPIRE', PREFIX .. name, operation.retention_ms)
  end
end

-- Write a job's state and events together, as the gateway that holds it: events, body and private, as far as they are
-- given. due_ms says when others may take the job; without it the job has ended.
operations.write_job = {
  check = function(operation, batch)
    local ref = operation.ref
    if batch.created[ref] then return end
    local problem, detail = check_fence(operation)
    if problem then return problem, detail end
    local values = redis.call('HMGET', record_key(ref), 'version', 'last_event')
    if #operation.events > 0 and tonumber(values[2]) + 1 ~= operation.first_event then return 'position', values[2] end
    if operation.body and tonumber(values[1]) ~= operation.version then return 'version', values[1] end
  end,
  write = function(operation)
    local ref, key, answer = operation.ref, record_key(operation.ref), {}
    redis.call('HSET', key, 'fence', operation.fence, 'expires_ms', operation.expires_ms)
    if operation.body then
      redis.call('HSET', key, 'body', ARGV[operation.body])
      answer.version = redis.call('HINCRBY', key, 'version', 1)
    end
    if operation.private then redis.call('HSET', key, 'private', ARGV[operation.private]) end
    if #operation.events > 0 then append(operation) end
    local thread = redis.call('HGET', key, 'claim')
    if operation.due_ms then
      local is_waiting = thread and active_job(thread) ~= ref
      redis.call('ZADD', JOBS, is_waiting and operation.expires_ms or operation.due_ms, ref)
    else
      redis.call('ZREM', JOBS, ref)
      answer.heir = thread and release_thread(thread, ref, operation.now_ms) or nil
    end
    return answer
  end,
}
