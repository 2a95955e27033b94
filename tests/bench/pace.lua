-- Token bucket (GCRA) and daily cap in one call, on Redis's own clock.
-- KEYS: bucket, day counter. ARGV: microseconds a token, burst in microseconds, cap.
-- Answers 0 when the message may go, else the milliseconds to wait; -1 when the day is used up.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local used = tonumber(redis.call('GET', KEYS[2]) or 0)
if used >= tonumber(ARGV[3]) then return -1 end
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = tat - now - tonumber(ARGV[2])
if wait > 0 then return math.ceil(wait / 1000) end
redis.call('SET', KEYS[1], string.format('%.0f', tat + ARGV[1]), 'PX', 86400000)
if redis.call('INCR', KEYS[2]) == 1 then redis.call('EXPIRE', KEYS[2], 86400) end
return 0
