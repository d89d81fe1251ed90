-- GCRA without fractions: what a key owes, in permits times microseconds, as of a moment. Each microsecond
-- pays back the quota's amount, each permit costs its window, and a whole number stays exact.

local function read(key, quota, now)
  local last, debt = string.match(ask('GET', key) or '', '^(%d+) (%d+)$')
  -- What a clock that was set back would give again has been given.
  local elapsed = math.max(0, now - (tonumber(last) or now))
  debt = counted(debt, quota.burst, quota.window)
  return {key = key, quota = quota, now = now, debt = math.max(0, debt - elapsed * quota.amount)}
end

local function wait(state, cost)
  local quota = state.quota
  if cost > quota.burst then return nil end
  local short = state.debt + (cost - quota.burst) * quota.window
  return math.max(0, math.ceil(short / quota.amount))
end

local function take(state, cost)
  local quota = state.quota
  state.debt = plus(state.debt, cost, quota.burst, quota.window)
end

local function give(state, amount, at)
  if amount < 0 then return take(state, -amount) end
  local quota = state.quota
  -- In that time a bucket may have been full: then it has them already.
  if (state.now - at) * quota.amount > quota.burst * quota.window then return end
  state.debt = math.max(0, state.debt - amount * quota.window)
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
    redis.call('SET', state.key, value, 'PX', milliseconds(reset))
  end
end
