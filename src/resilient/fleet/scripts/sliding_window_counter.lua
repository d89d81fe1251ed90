-- Two counts: what was taken in the window before fades away while this one passes.

local function read(key, quota, now)
  local start, count, before = string.match(ask('GET', key) or '', '^(%d+) (%d+) (%d+)$')
  start = math.min(tonumber(start) or now, now)
  count, before = counted(count, quota.amount), counted(before, quota.amount)
  if now >= start + quota.window then start, count, before = start + quota.window, 0, count end
  if now >= start + quota.window or count + before == 0 then start, count, before = now, 0, 0 end
  local ahead = start + quota.window - now
  return {key = key, quota = quota, now = now, start = start, count = count, before = before, ahead = ahead}
end

local function faded(state)
  return math.floor(state.before * state.ahead / state.quota.window)
end

-- How much of a window may be left for `before` permits to have faded to `room`, rounded down.
local function span(quota, room, before)
  return math.min(quota.window, math.ceil((room + 1) * quota.window / before) - 1)
end

-- How long until no more than `permits`, of those that are more now, count.
local function until_only(state, permits)
  local quota = state.quota
  if state.count <= permits then return state.ahead - span(quota, permits - state.count, state.before) end
  return state.ahead + quota.window - span(quota, permits, state.count)
end

local function wait(state, cost)
  local amount = state.quota.amount
  if cost > amount then return nil end
  if faded(state) + state.count + cost <= amount then return 0 end
  return until_only(state, amount - cost)
end

local function take(state, cost)
  state.count = plus(state.count, cost, state.quota.amount)
end

local function give(state, amount, at)
  if amount < 0 then
    take(state, -amount)
  elseif at >= state.start then
    state.count = math.max(0, state.count - amount)
  elseif at >= state.start - state.quota.window then
    state.before = math.max(0, state.before - amount)
  end
end

local function level(state)
  local used = faded(state) + state.count
  return math.max(0, state.quota.amount - used), used > 0 and until_only(state, 0) or 0
end

local function write(state)
  local value = string.format('%.0f %.0f %.0f', state.start, state.count, state.before)
  redis.call('SET', state.key, value, 'PX', milliseconds(state.ahead + state.quota.window))
end
