-- Fields of one object. ARGV: the object, then names of fields. Returns their values, or nothing if it does not exist.
if not exists(ARGV[1]) then return {} end
return redis.call('HMGET', record_key(ARGV[1]), unpack(ARGV, 2))
