-- Token buckets (GCRA). A key holds its theoretical arrival time (TAT) in microseconds of this server's clock: the
-- moment at which the bucket is full again. One call serves many buckets, each up to the tokens that it is asked for.
--
-- KEYS[i]   the bucket; its name holds its parameters, so that one key is never read with two of them
-- ARGV      five for each bucket: microseconds per token, microseconds in which it fills, tokens wanted, microseconds
--           that were used in the last minute, and 1 if what the key holds is not to be trusted
-- answers   two for each bucket: tokens granted, microseconds until the next one
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answer = {}

for i, key in ipairs(KEYS) do
    local interval, window = tonumber(ARGV[5 * i - 4]), tonumber(ARGV[5 * i - 3])
    local wanted, used = tonumber(ARGV[5 * i - 2]), tonumber(ARGV[5 * i - 1])
    local stored = redis.pcall('GET', key)
    local tat = type(stored) == 'string' and tonumber(stored)
    if not tat or ARGV[5 * i] == '1' then
        tat = math.max(tat or 0, now + used)
    end
    -- A clock that stepped back left the TAT far ahead: an empty bucket at most, neither frozen nor full.
    tat = math.min(math.max(tat, now), now + window)
    local granted = math.min(wanted, math.floor((now + window - tat) / interval))
    tat = tat + granted * interval
    -- Kept for a minute longer than it takes to fill: after that, what was used in the last minute says it all.
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil(window / 1000) + 60000)
    answer[2 * i - 1] = granted
    answer[2 * i] = math.max(0, tat + interval - window - now)
end
return answer
