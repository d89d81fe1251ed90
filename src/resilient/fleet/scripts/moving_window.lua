-- The exact one: a list with the time of each permit taken in the last window, newest first.

-- What is no time is long over.
local function time_at(key, index)
  return whole(redis.call('LINDEX', key, index)) or 0
end

local function read(key, quota, now)
  local state = {key = key, quota = quota, now = now, count = 0, fresh = 0}
  local newest = ask('LINDEX', key, 0)
  if not newest then return state end
  newest = whole(newest) or 0
  if newest <= now - quota.window or newest > now + quota.window then
    redis.call('DEL', key)  -- all over; or of a clock that has since been set back
    return state
  end
  -- The list must stay in order, so a clock that was set back a little stands still for this key.
  state.now = math.max(now, newest)
  local low, high = 1, redis.call('LLEN', key)
  while low < high do  -- how many are in the window: the first of them that is not ends them
    local middle = math.floor((low + high) / 2)
    if time_at(key, middle) > state.now - quota.window then
      low = middle + 1
    else
      high = middle
    end
  end
  redis.call('LTRIM', key, 0, low - 1)
  state.count, state.newest = low, newest
  return state
end

local function wait(state, cost)
  local quota = state.quota
  if cost > quota.amount then return nil end
  local excess = state.count + cost - quota.amount
  if excess <= 0 then return 0 end
  return math.max(0, time_at(state.key, -excess) + quota.window - state.now)
end

local function take(state, cost)
  state.fresh = state.fresh + math.min(cost, state.quota.amount)
end

local function give(state, amount, at)
  if amount < 0 then
    take(state, -amount)
  elseif amount > 0 then
    state.count = state.count - redis.call('LREM', state.key, amount, string.format('%.0f', at))
  end
end

local function level(state)
  local count = math.min(state.quota.amount, state.count + state.fresh)
  if count == 0 then return state.quota.amount, 0 end
  local newest = state.fresh > 0 and state.now or state.newest
  return state.quota.amount - count, newest + state.quota.window - state.now
end

local function write(state)
  local now = string.format('%.0f', state.now)
  for first = 1, state.fresh, 1000 do
    local some = {}
    for i = 1, math.min(state.fresh - first + 1, 1000) do some[i] = now end
    redis.call('LPUSH', state.key, unpack(some))
  end
  -- More than its amount a window cannot remember: then it is full until the last of them is over.
  redis.call('LTRIM', state.key, 0, state.quota.amount - 1)
  redis.call('PEXPIRE', state.key, milliseconds(state.quota.window))
end
