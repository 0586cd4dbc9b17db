-- What the scripts of this folder share: each sets `name`, and `ask(i)`, which gives the path
-- and the body of the i-th request. done() prints a row of deploy/load/run's table.
-- With BODIES=FILE in the environment every answer goes into FILE.<thread>, a line each, for a
-- check of its own.
local threads = {}

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"

-- Tokens of an answer in one piece, or the events with text of a stream.
local function tokens_of(answer)
   local n = answer:match('"completion_tokens":(%d+)')
   if n then return tonumber(n) end
   local _, events = answer:gsub('"finish_reason":null', "")
   return events
end

function setup(thread)
   thread:set("id", #threads)
   table.insert(threads, thread)
end

function init(_)
   bad, refused, tokens, asked = 0, 0, 0, id * 1000003
   local path = os.getenv("BODIES")
   out = path and io.open(path .. "." .. id, "w")
end

function request()
   asked = asked + 1
   local path, text = ask(asked)
   return wrk.format(nil, path, nil, text)
end

function response(status, _, answer)
   if status == 429 or status == 503 then
      refused = refused + 1
   elseif status ~= 200 or not answer:find('"finish_reason":"', 1, true) then
      bad = bad + 1
   else
      tokens = tokens + tokens_of(answer)
   end
   if out then out:write(answer, "\n") end
end

function done(summary, latency, _)
   local sum = {bad = 0, refused = 0, tokens = 0}
   for _, thread in ipairs(threads) do
      for key in pairs(sum) do sum[key] = sum[key] + thread:get(key) end
   end
   local e, seconds = summary.errors, summary.duration / 1e6
   local function ms(p) return latency:percentile(p) / 1000 end
   print(string.format("%-12s %9.1f %10.0f %9.2f %9.2f %9.2f %9.2f %9.2f %8d %6d %6d", name,
                       summary.requests / seconds, sum.tokens / seconds, ms(50), ms(90), ms(99), ms(99.9),
                       latency.max / 1000, sum.refused, sum.bad, e.connect + e.read + e.write + e.timeout))
end

-- Words for prompts that differ, the same for the same number.
local words = {"the", "little", "dog", "and", "a", "big", "red", "ball", "went", "to", "park", "she", "was", "happy"}
function prompt(i, n)
   local list = {"Once upon a time"}
   for k = 1, n do list[#list + 1] = words[(i * 7 + k * k) % #words + 1] end
   return table.concat(list, " ")
end
