-- Presence of this gateway, and what changed since a moment: gateways, failed authentications, locks.
-- KEYS: gateways by the end of their presence; hash of failing accounts and their order by time; hash of locks, their
-- order by time, and their order by end.
-- ARGV: this gateway; seconds for which it is present; moments since which accounts and locks are asked for; most of
-- each; seconds after which a failing account is forgotten; number of gateways as last heard; largest debt and delay
-- of an account, in microseconds.
-- Returns the gateways, none where their number is that; names, debts and delays of accounts, and the moment of the
-- last; ids and texts of locks, and the moment of the last; the number of locks; 1 if this gateway was not present.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local most = tonumber(ARGV[5])

local longest = now + ARGV[2] * 2000000 -- beyond it are those of before the clock was set back
local seen = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local joined = (seen <= now or seen >= longest) and 1 or 0
-- First of all writes, since a store that is full refuses only the first one of a script.
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2] * 1000000), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if tonumber(ARGV[2]) > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('%.0f', longest), '+inf')
end
redis.call('PEXPIRE', KEYS[1], 60000)
local gateways = {}
if redis.call('ZCARD', KEYS[1]) ~= tonumber(ARGV[7]) then
  gateways = redis.call('ZRANGE', KEYS[1], 0, -1)
end

-- A store that evicts keys may have lost one alone: what belongs to it is lost too, and is told again.
for _, keys in ipairs({{KEYS[2], KEYS[3]}, {KEYS[4], KEYS[5], KEYS[6]}}) do
  local size = redis.call('HLEN', keys[1])
  for at = 2, #keys do
    if redis.call('ZCARD', keys[at]) ~= size then
      redis.call('DEL', unpack(keys))
    end
  end
end

local old = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - ARGV[6] * 1000000), 'LIMIT', 0, most)
for _, name in ipairs(old) do
  redis.call('HDEL', KEYS[2], name)
  redis.call('ZREM', KEYS[3], name)
end
local accounts, heard = {}, ARGV[3]
local changed = redis.call('ZRANGEBYSCORE', KEYS[3], ARGV[3], '+inf', 'WITHSCORES', 'LIMIT', 0, most)
for at = 1, #changed, 2 do
  local stored = redis.call('HGET', KEYS[2], changed[at])
  local owed, delay = string.match(stored or '', '^(%d+) (%d+)$')
  if owed then
    local left, rest = math.max(0, owed - now), math.max(0, delay - now)
    if left > tonumber(ARGV[8]) or rest > tonumber(ARGV[9]) then -- of before the clock was set back
      left, rest = math.min(left, ARGV[8]), math.min(rest, ARGV[9])
      redis.call('HSET', KEYS[2], changed[at], string.format('%.0f %.0f', now + left, now + rest))
    end
    accounts[#accounts + 1], accounts[#accounts + 2], accounts[#accounts + 3] = changed[at], left, rest
  end
  heard = changed[at + 1]
end

local over = redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', string.format('%.0f', now), 'LIMIT', 0, most)
for _, id in ipairs(over) do
  redis.call('HDEL', KEYS[4], id)
  redis.call('ZREM', KEYS[5], id)
  redis.call('ZREM', KEYS[6], id)
end
local locks, known = {}, ARGV[4]
changed = redis.call('ZRANGEBYSCORE', KEYS[5], ARGV[4], '+inf', 'WITHSCORES', 'LIMIT', 0, most)
for at = 1, #changed, 2 do
  locks[#locks + 1] = changed[at]
  locks[#locks + 1] = redis.call('HGET', KEYS[4], changed[at]) or ''
  known = changed[at + 1]
end
return {gateways, accounts, heard, locks, known, redis.call('HLEN', KEYS[4]), joined}
