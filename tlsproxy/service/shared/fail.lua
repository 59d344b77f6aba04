-- Failed authentications: the twin of Penalty in tlsproxy/proxy/limits/gcra.py. Times are microseconds.
-- KEYS: hash of accounts, and their order by time. ARGV: interval, room, longest delay, most accounts; then for each
-- account its name, number of failures, and time after a delay in which no other begins; ARGV[5]: milliseconds after
-- which all is forgotten.
-- Returns for each account its name, its debt and the rest of its delay.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, room, longest, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
local moment = math.max(now, last and last + 1 or 0) -- grows even if the clock is set back
local steps = 0
while 2 ^ steps <= longest / 1000000 do
  steps = steps + 1
end
local found = {}
for at = 6, #ARGV, 3 do
  local name, heard = ARGV[at], tonumber(ARGV[at + 2])
  local owed, delay = 0, 0
  local stored = redis.call('HGET', KEYS[1], name)
  if stored then
    local first, second = string.match(stored, '^(%d+) (%d+)$')
    owed = math.max(0, first - now)
    delay = math.min(longest + heard, math.max(0, second - now))
  end
  for _ = 1, math.min(tonumber(ARGV[at + 1]), 1000) do
    owed = math.min(owed + interval, room + interval * steps + interval)
    local excess = math.ceil((owed - room) / interval)
    if delay == 0 and excess > 0 then
      delay = math.min(longest, 1000000 * 2 ^ (excess - 1)) + heard
    end
  end
  owed, delay = math.ceil(owed), math.ceil(delay)
  redis.call('HSET', KEYS[1], name, string.format('%.0f %.0f', now + owed, now + delay))
  redis.call('ZADD', KEYS[2], string.format('%.0f', moment), name)
  moment = moment + 1
  found[#found + 1], found[#found + 2], found[#found + 3] = name, owed, delay
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[5])
end
local surplus = redis.call('ZCARD', KEYS[2]) - most
if surplus > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, surplus - 1)) do
    redis.call('HDEL', KEYS[1], name)
  end
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, surplus - 1)
end
return found
