-- Draws from accounts of rate limits: the twin of tlsproxy/proxy/limits/draws.py. Times are microseconds.
-- KEYS: accounts. ARGV[1]: for each account six doubles, its interval, room, balance, wish, owed and number of gateways.
-- (One argument for each would cost a gateway more than all else.)
-- Returns for each account two doubles, the tokens and its debt.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local granted = {}
for number, key in ipairs(KEYS) do
  local interval, room, balance, wish, owed, gateways = struct.unpack('<dddddd', ARGV[1], (number - 1) * 48 + 1)
  local stored = redis.call('GET', key)
  local ahead = math.min(2 * room + gateways * interval, stored and stored - now or owed)
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
  granted[number] = struct.pack('<dd', tokens, debt)
end
return table.concat(granted)
