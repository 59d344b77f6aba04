-- Draws from accounts of rate limits: the twin of tlsproxy/proxy/limits/draws.py. Times are microseconds.
-- KEYS: accounts. ARGV: for each account its interval, room, balance, wish, owed and number of gateways.
-- Returns for each account the tokens and its debt.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local granted = {}
for number, key in ipairs(KEYS) do
  local at = (number - 1) * 6
  local interval, room = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local balance, wish = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local stored = redis.call('GET', key)
  local gateways = tonumber(ARGV[at + 6])
  local ahead = math.min(2 * room + gateways * interval, stored and stored - now or tonumber(ARGV[at + 5]))
  local debt = math.max(0, math.max(0, ahead) - balance * interval)
  local left = math.max(0, math.floor((room - debt) / interval))
  local reserve = gateways == 1 and 0 or math.min(0.5, 2 / gateways)
  local tokens = math.min(wish, left - math.floor(left * reserve))
  debt = math.ceil(debt + tokens * interval)
  if debt > 0 then
    redis.call('SET', key, string.format('%.0f', now + debt), 'PX', math.ceil(debt / 1000) + 1000)
  elseif stored then
    redis.call('DEL', key)
  end
  granted[2 * number - 1], granted[2 * number] = tokens, debt
end
return granted
