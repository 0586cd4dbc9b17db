-- wrk -t2 -c64 -d30s -s deploy/load/chat.lua http://127.0.0.1:8080
-- Chats of one turn, in one piece.
dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")
name = "chat"

function ask(i)
   return "/v1/chat/completions",
      '{"messages":[{"role":"user","content":"' .. prompt(i % 100, 8) .. '"}],"max_tokens":32}'
end
