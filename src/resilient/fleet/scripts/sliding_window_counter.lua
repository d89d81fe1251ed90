-- Two counts: what was taken in the window before fades away while this one passes.

local function read(key, quota, now)
  local value = redis.call('GET', key) or ''
  local start, count, before = string.match(value, '^(%d+) (%d+) (%d+)$')
  start = math.min(tonumber(start) or now, now)
  count, before = tonumber(count) or 0, tonumber(before) or 0
  if now >= start + 2 * quota.window then
    start, count, before = now, 0, 0
  elseif now >= start + quota.window then
    start, count, before = start + quota.window, 0, count
  end
  local ahead = start + quota.window - now
  return {key = key, quota = quota, start = start, count = count, before = before, ahead = ahead}
end

local function faded(state)
  return math.floor(state.before * state.ahead / state.quota.window)
end

-- How much of a window may be left for `before` permits to have faded to `room`, rounded down.
local function span(quota, room, before)
  return math.min(quota.window, math.ceil((room + 1) * quota.window / before) - 1)
end

local function wait(state, cost)
  local quota = state.quota
  if cost > quota.amount then return nil end
  local room = quota.amount - cost - state.count
  if faded(state) <= room then return 0 end
  if room >= 0 then return state.ahead - span(quota, room, state.before) end
  return state.ahead + quota.window - span(quota, quota.amount - cost, state.count)
end

local function take(state, cost)
  state.count = state.count + cost
end

local function give(state, amount, at)
  if amount < 0 or at >= state.start then
    state.count = math.max(0, state.count - amount)
  elseif at >= state.start - state.quota.window then
    state.before = math.max(0, state.before - amount)
  end
end

local function level(state)
  local left = math.max(0, state.quota.amount - faded(state) - state.count)
  if state.count > 0 then return left, state.ahead + state.quota.window end
  return left, state.before > 0 and state.ahead or 0
end

local function write(state)
  local value = string.format('%.0f %.0f %.0f', state.start, state.count, state.before)
  redis.call('SET', state.key, value, 'PX', math.ceil((state.ahead + state.quota.window) / 1000))
end
