-- GCRA without fractions: what a key owes, in permits times microseconds, as of a moment. Each microsecond
-- pays back the quota's amount, each permit costs its window, and a whole number stays exact.

local function read(key, quota, now)
  local last, debt = string.match(redis.call('GET', key) or '', '^(%d+) (%d+)$')
  local state = {key = key, quota = quota, now = now, debt = tonumber(debt) or 0}
  if last then
    -- A clock that was set back stands still for this key until it has caught up.
    local elapsed = math.max(0, now - tonumber(last))
    state.debt = math.max(0, state.debt - elapsed * quota.amount)
  end
  return state
end

local function wait(state, cost)
  local quota = state.quota
  if cost > quota.burst then return nil end
  local short = state.debt + (cost - quota.burst) * quota.window
  return math.max(0, math.ceil(short / quota.amount))
end

local function take(state, cost)
  state.debt = state.debt + cost * state.quota.window
end

local function give(state, amount, at)
  state.debt = math.max(0, state.debt - amount * state.quota.window)
end

local function level(state)
  local quota = state.quota
  local left = math.floor((quota.burst * quota.window - state.debt) / quota.window)
  return math.max(0, left), math.ceil(state.debt / quota.amount)
end

local function write(state)
  local _, reset = level(state)
  if reset == 0 then
    redis.call('DEL', state.key)
  else
    local value = string.format('%.0f %.0f', state.now, state.debt)
    redis.call('SET', state.key, value, 'PX', math.ceil(reset / 1000))
  end
end
