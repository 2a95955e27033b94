-- Token buckets (GCRA). A key holds its theoretical arrival time (TAT) in microseconds of this server's clock: the
-- moment at which the bucket is full again. One call serves many buckets, each up to the tokens that it is asked for.
--
-- KEYS[i]        the bucket; its name holds its parameters, so that one key is never read with two of them
-- ARGV[4i-3..]   interval in microseconds per token, burst, tokens wanted, tokens used in the last minute
--                (used < 0: as it is; otherwise rebuild: a key that is missing or not to be trusted)
-- answers        per bucket: tokens granted, microseconds until the next one, 1 if the key is missing and `used` < 0
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answer = {}

for i, key in ipairs(KEYS) do
    local interval, burst = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
    local wanted, used = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i])
    local window = interval * burst
    local tat = tonumber(redis.call('GET', key) or false)
    if not tat and used < 0 then
        -- Nothing is known of it, and nobody said what was used: empty, never full.
        used = burst
    end
    if used >= 0 then
        tat = math.max(tat or 0, now + used * interval)
    end
    -- A clock that stepped back left the TAT far ahead: an empty bucket at most, neither frozen nor full.
    tat = math.min(math.max(tat, now), now + window)
    local granted = math.min(wanted, math.floor((now + window - tat) / interval))
    tat = tat + granted * interval
    -- Kept for a minute longer than it takes to fill: after that, what the ledger says of the last minute is all.
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((window + 60000000) / 1000))
    answer[2 * i - 1] = granted
    answer[2 * i] = string.format('%.0f', math.max(0, tat + interval - window - now))
end
return answer
