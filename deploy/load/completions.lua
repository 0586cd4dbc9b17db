-- wrk -t2 -c64 -d30s -s deploy/load/completions.lua http://127.0.0.1:8080
-- Short completions in one piece.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")
name = "completions"

function ask(i)
   return "/v1/completions", '{"prompt":"' .. prompt(i % 100, 4) .. '","max_tokens":16}'
end
