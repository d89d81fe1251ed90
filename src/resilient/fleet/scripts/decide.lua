-- Decides about one key under one quota or several, all or nothing, as of one moment of the server's clock.
-- What a strategy makes of it stands before: read, wait, take, give, level, write. So does what all need to
-- read and write values.
--
-- KEYS: one for each quota.
-- ARGV: what to do, the cost, one more number, and for each quota its amount, its window and its burst.
--   hit    take `cost` if all have it within `extra` microseconds
--   lease  take between `cost` and `extra`, as many as all have
--   peek   as hit, and take nothing
--   give   put back `cost` (below 0: take) of what was taken for use at `extra`
-- Answers: permits taken (of a peek: 1 or 0), which quota is the tightest, what it has left, when all of it is
-- back, how long to wait (-1: for ever), the time. Times are in microseconds.

local what, cost, extra = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local seconds, micros = unpack(redis.call('TIME'))
local now = tonumber(seconds) * 1000000 + tonumber(micros)

local states, moment = {}, now
for i, key in ipairs(KEYS) do
  local amount, window, burst = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  states[i] = read(key, {amount = amount, window = window, burst = burst}, now)
  -- Where the clock was set back, it is told as what permits are kept: they are given back by it.
  moment = math.max(moment, states[i].now)
end

local function answer(taken, which, left, reset, delay)
  delay = delay < math.huge and math.min(delay, FOREVER) or -1
  return {taken, which, left, math.min(reset, FOREVER), delay, moment}
end

local function tightest()
  local which, least, longest
  for i, state in ipairs(states) do
    local left, reset = level(state)
    if not least or left < least or (left == least and reset > longest) then
      which, least, longest = i, left, reset
    end
  end
  return which, least, longest
end

if what == 'give' then
  for _, state in ipairs(states) do
    give(state, cost, extra)
    write(state)
  end
  local which, left, reset = tightest()
  return answer(0, which, left, reset, 0)
end

local delay, slowest = 0, nil
for i, state in ipairs(states) do
  local one = wait(state, cost)
  if not one or one > delay then
    delay, slowest = one or math.huge, i
    if not one then break end
  end
end

if delay > (what == 'hit' and extra or 0) then
  local left, reset = level(states[slowest])
  return answer(0, slowest, left, reset, delay)
end

local taken = cost
if what == 'lease' then
  local _, left = tightest()
  taken = math.max(cost, math.min(extra, left))
end
if what ~= 'peek' then
  for _, state in ipairs(states) do
    take(state, taken)
    write(state)
  end
end
local which, left, reset = tightest()
return answer(taken, which, left, reset, delay)
