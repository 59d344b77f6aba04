-- Locks as gateways know them. A lock that was taken back stays so.
-- KEYS: hash of locks, their order by time, and their order by end. ARGV: most locks; then for each its id, its state
-- (L or U), its text, and the seconds for which it is kept (negative: for good).
-- Returns the number of those that found no room.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
local moment = math.max(now, last and last + 1 or 0) -- grows even if the clock is set back
local refused = 0
for at = 2, #ARGV, 4 do
  local id, state, seconds = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3])
  local stored = redis.call('HGET', KEYS[1], id)
  if not stored and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[1]) then
    refused = refused + 1
  elseif not stored or (state == 'U' and string.sub(stored, 1, 1) == 'L') then
    redis.call('HSET', KEYS[1], id, state .. ARGV[at + 2])
    redis.call('ZADD', KEYS[2], string.format('%.0f', moment), id)
    moment = moment + 1
    redis.call('ZADD', KEYS[3], seconds < 0 and '+inf' or string.format('%.0f', now + seconds * 1000000), id)
  end
end
return refused
