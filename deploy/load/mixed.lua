-- wrk -t2 -c64 -d30s -s deploy/load/mixed.lua http://127.0.0.1:8080
-- Prompts of 1 to 128 words and answers of 1 to 128 tokens, half of them streams: mostly short
-- ones, some long, as people ask.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")
name = "mixed"

local function skewed(i, salt)
   return 2 ^ ((i * 2654435761 + salt * 40503) % 8)
end

function ask(i)
   return "/v1/completions", string.format('{"prompt":"%s","max_tokens":%d,"stream":%s}',
      prompt(i, skewed(i, 1)), skewed(i, 2), i % 2 == 0 and "true" or "false")
end
