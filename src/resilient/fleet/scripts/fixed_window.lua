-- A count that begins anew with each window; a window begins with the first permit taken after the one before.

local function read(key, quota, now)
  local start, count = string.match(ask('GET', key) or '', '^(%d+) (%d+)$')
  -- A window cannot begin in the future, unless the clock was set back.
  start, count = math.min(tonumber(start) or now, now), counted(count, quota.amount)
  if count == 0 or now >= start + quota.window then start, count = now, 0 end
  return {key = key, quota = quota, now = now, start = start, count = count}
end

local function wait(state, cost)
  local quota = state.quota
  if cost > quota.amount then return nil end
  if state.count + cost <= quota.amount then return 0 end
  return state.start + quota.window - state.now
end

local function take(state, cost)
  state.count = plus(state.count, cost, state.quota.amount)
end

local function give(state, amount, at)
  if amount < 0 then
    take(state, -amount)
  elseif at >= state.start then
    state.count = math.max(0, state.count - amount)
  end
end

local function level(state)
  local reset = state.count > 0 and state.start + state.quota.window - state.now or 0
  return math.max(0, state.quota.amount - state.count), reset
end

local function write(state)
  local ttl = milliseconds(state.start + state.quota.window - state.now)
  redis.call('SET', state.key, string.format('%.0f %.0f', state.start, state.count), 'PX', ttl)
end
