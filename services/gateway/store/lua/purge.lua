-- Remove a slice of what is left of deleted objects. Returns 1 if there is more.
local ref = redis.call('SRANDMEMBER', DELETING)
if not ref then return 0 end
if clear(ref, SLICE) > 0 then redis.call('SREM', DELETING, ref) end
return redis.call('EXISTS', DELETING)
