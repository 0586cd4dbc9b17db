-- wrk -t2 -c64 -d30s -s deploy/load/completions.lua http://127.0.0.1:8080/v1/completions
-- Short completions; with BODIES=FILE in the environment every answer goes into FILE, a line each,
-- for a check of its own.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"prompt": "Once upon a time", "max_tokens": 16}'

local threads = {}
function setup(thread)
   thread:set("id", #threads)
   table.insert(threads, thread)
end

function init(_)
   bad = 0
   local path = os.getenv("BODIES")
   out = path and io.open(path .. "." .. id, "w")
end

function response(status, _, body)
   if status ~= 200 or not body:find('"finish_reason"', 1, true) then bad = bad + 1 end
   if out then out:write(body, "\n") end
end

function done(summary, latency, _)
   local bad_answers = 0
   for _, thread in ipairs(threads) do bad_answers = bad_answers + thread:get("bad") end
   local e = summary.errors
   print(string.format("%d answers, %d bad, %d socket errors, %d timeouts", summary.requests, bad_answers,
                       e.connect + e.read + e.write, e.timeout))
   print(string.format("p50 %.1f ms, p99 %.1f ms", latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
