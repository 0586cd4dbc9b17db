-- wrk -t2 -c64 -d30s -s deploy/load/stream.lua http://127.0.0.1:8080
-- Completions as event streams; the time is that of the whole stream, as wrk sees no events.
-- tests/load times each event.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")
name = "stream"

function ask(i)
   return "/v1/completions", '{"prompt":"' .. prompt(i % 100, 4) .. '","max_tokens":64,"stream":true}'
end
