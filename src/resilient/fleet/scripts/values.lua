-- What stands under a key. Nobody but these scripts should write there. What somebody else wrote must neither
-- fail a decision nor deny one for ever: it is as good as unseen, and is written over.

local MOST = 1e9  -- permits that one call may be about
local FOREVER = 1e18  -- microseconds: longer than any window, and still a whole number to the server

-- As redis.call, for a question; nil where there is nothing, or something of another type.
local function ask(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' then return answer or nil end
  if string.find(answer.err, '^WRONGTYPE') then
    redis.call('DEL', key)
  else
    redis.call(command, key, ...)  -- not permitted, out of memory: that is for the caller to know
  end
end

local function whole(text)
  return text and tonumber(string.match(text, '^%d+$'))
end

-- What was counted, or 0 if it is more than `most` permits and a call, each of which counts `each`.
local function counted(text, most, each)
  local number = tonumber(text) or 0
  return number <= (most + MOST) * (each or 1) and number or 0
end

-- The sum, as far as it is believed when it is read again.
local function plus(count, cost, most, each)
  return math.min(count + cost * (each or 1), (most + MOST) * (each or 1))
end

local function milliseconds(micros)
  return math.ceil(math.min(micros, FOREVER) / 1000)
end
