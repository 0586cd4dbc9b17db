"""LiteLLM in front of the server, as a library and as its router: litellm_client.py"""
import os
import sys

os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR", LITELLM_TELEMETRY="False")
import litellm  # noqa: E402

from common import Server, run_tests  # noqa: E402

litellm.telemetry = False
litellm.suppress_debug_info = True
CHAT = [{"role": "user", "content": "A story about a cat."}]
server = None


def where(of=None):
    return {"api_base": (of or server).address + "/v1", "api_key": "none"}


def chats_come_whole_and_in_parts():
    more = {"model": "openai/stories", "messages": CHAT, "max_tokens": 25, "temperature": 0, **where()}
    whole = litellm.completion(**more)
    assert whole.usage.completion_tokens <= 25 and whole.choices[0].finish_reason in ("stop", "length")
    chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **more))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def completions_and_embeddings():
    answer = litellm.text_completion(model="text-completion-openai/stories", prompt="Once upon a time", max_tokens=20,
                                     temperature=0, **where())
    assert len(answer.choices[0].text) > 20 and answer.choices[0].finish_reason == "length"
    vectors = litellm.embedding(model="openai/stories", input=["A cat.", "A dog."], **where()).data
    assert len(vectors) == 2 and len(vectors[0]["embedding"]) == len(vectors[1]["embedding"]) > 100


def errors_have_their_classes():
    for kind, more in ((litellm.NotFoundError, {"model": "openai/other"}),
                       (litellm.BadRequestError, {"temperature": 9}),
                       (litellm.ContextWindowExceededError,
                        {"messages": [{"role": "user", "content": "a " * 3000}]})):
        try:
            litellm.completion(**{"model": "openai/stories", "messages": CHAT, "num_retries": 0, **where(), **more})
        except kind:
            continue
        raise AssertionError(kind)


def a_router_goes_on_when_one_server_ends():
    with Server("--log-level", "error") as other:
        router = litellm.Router(num_retries=5, retry_after=0, allowed_fails=0, cooldown_time=30, model_list=[
            {"model_name": "m", "litellm_params": {"model": "openai/stories", **where(s)}} for s in (server, other)])
        texts = set()
        for i in range(20):
            if i == 8:
                assert other.end() == 0
            answer = router.completion(model="m", messages=CHAT, max_tokens=10, temperature=0)
            texts.add(answer.choices[0].message.content)
        assert len(texts) == 1, texts


with Server("--log-level", "error") as server:
    status = run_tests([chats_come_whole_and_in_parts, completions_and_embeddings, errors_have_their_classes,
                        a_router_goes_on_when_one_server_ends])
sys.exit(status)
