"""OpenAI's own Python package, and LangChain on top of it, against the server: openai_client.py

The client checks every answer against its types (_strict_response_validation), which are made
from OpenAI's document: a field that lacks or has another type fails here.
"""
import asyncio
import math
import signal
import sys
import tempfile
import threading
import time

import httpx
import openai
from openai import AsyncOpenAI, OpenAI

from common import Server, run_tests, wait_for

PROMPT = "Once upon a time"
CHAT = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "A story about a cat."}]
MODEL = "stories"
server = None  # one with the story model, for all tests that need no other


def client(of=None, strict=True, **more):
    return OpenAI(base_url=(of or server).address + "/v1", api_key="none", _strict_response_validation=strict,
                  **{"max_retries": 0, **more})


def lax(of=None, **more):
    """For what the types deny to OpenAI's own answers: finish_reason null in completion chunks,
    null as the log probability of a first token, vectors as base64."""
    return client(of, False, **more)


def raises(kind, call, **facts):
    try:
        call()
    except kind as e:
        for name, value in facts.items():
            assert getattr(e, name) == value, (name, getattr(e, name), value)
        return e
    raise AssertionError(f"{kind.__name__} was not raised")


def story(by=None, **more):
    return (by or client()).completions.create(
        **{"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, **more})


def completions_have_the_declared_shape():
    answer = story()
    choice = answer.choices[0]
    assert answer.object == "text_completion" and answer.model == MODEL and answer.id.startswith("cmpl-")
    assert abs(answer.created - time.time()) < 60 and answer.system_fingerprint
    assert choice.finish_reason == "length" and choice.logprobs is None and choice.index == 0
    assert answer.usage.completion_tokens == 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 40
    assert "stop" == story(stop=["."], max_tokens=100).choices[0].finish_reason


def a_stream_is_the_same_answer_in_parts():
    whole = story()
    chunks = list(story(lax(), stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 20 and {c.id for c in chunks} == {chunks[0].id}
    assert "".join(c.text for k in chunks for c in k.choices) == whole.choices[0].text
    assert [c.finish_reason for k in chunks for c in k.choices if c.finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 40
    assert all(c.usage is None for c in chunks[:-1])
    assert all(c.usage is None and c.choices for c in story(lax(), stream=True)), "usage was not asked for"


def request_ids_go_both_ways():
    own = client().completions.with_raw_response.create(model=MODEL, prompt=PROMPT, max_tokens=1)
    assert own.request_id and own.parse()._request_id == own.request_id
    given = client().completions.with_raw_response.create(model=MODEL, prompt=PROMPT, max_tokens=1,
                                                          extra_headers={"X-Request-Id": "mine-7"})
    assert given.request_id == "mine-7"
    error = raises(openai.BadRequestError, lambda: story(temperature=3))
    assert error.request_id


def several_prompts_and_choices_are_indexed_and_seeded():
    answers = [client().completions.create(model=MODEL, prompt=["The cat", "The dog"], n=2, seed=2**62, temperature=1,
                                           max_tokens=12) for _ in range(2)]
    assert [c.index for c in answers[0].choices] == [0, 1, 2, 3]
    texts = [[c.text for c in a.choices] for a in answers]
    assert texts[0] == texts[1] and texts[0][0] != texts[0][1], texts
    best = client().completions.create(model=MODEL, prompt=PROMPT, n=1, best_of=3, seed=1, max_tokens=8)
    assert len(best.choices) == 1 and best.usage.completion_tokens == 24


def logprobs_of_an_echo_line_up_with_the_text():
    choice = story(lax(), echo=True, logprobs=2, max_tokens=5).choices[0]
    l = choice.logprobs
    assert "".join(l.tokens) == choice.text and choice.text.startswith(PROMPT)
    assert [choice.text[o:].startswith(t) for o, t in zip(l.text_offset, l.tokens)] == [True] * len(l.tokens)
    assert l.token_logprobs[0] is None and all(p <= 0 for p in l.token_logprobs[1:])
    assert l.top_logprobs[0] is None and all(2 <= len(t) <= 3 for t in l.top_logprobs[1:])
    nothing = story(lax(), echo=True, logprobs=0, max_tokens=0).choices[0]
    assert nothing.text == PROMPT and nothing.logprobs.tokens == l.tokens[:-5]


def chats_have_the_declared_shape():
    answer = client().chat.completions.create(model=MODEL, messages=CHAT, max_completion_tokens=30, temperature=0,
                                              logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and choice.message.role == "assistant"
    assert choice.message.refusal is None and choice.finish_reason in ("length", "stop")
    tokens = choice.logprobs.content
    spelled = b"".join(bytes(t.bytes) for t in tokens).decode()
    assert spelled.startswith(choice.message.content), (spelled, choice.message.content)
    for t in tokens:
        assert len(t.top_logprobs) == 3 and t.logprob == t.top_logprobs[0].logprob, "greedy"
        assert sum(math.exp(a.logprob) for a in t.top_logprobs) <= 1.0001


def chat_streams_add_up_to_the_answer():
    more = {"model": MODEL, "messages": CHAT, "max_tokens": 30, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    whole = client().chat.completions.create(**more)
    chunks = list(client().chat.completions.create(stream=True, stream_options={"include_usage": True}, **more))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage == whole.usage
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    tokens = [t.token for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert tokens == [t.token for t in whole.choices[0].logprobs.content]
        # This helper takes only answers that end by themselves.
    with client().chat.completions.stream(**{**more, "stop": ["."], "max_tokens": 200}) as events:
        final = events.get_final_completion()
    assert text.startswith(final.choices[0].message.content) and final.choices[0].finish_reason == "stop"


def concurrent_streams_are_alike():
    async def one(c, i):
        stream = await c.completions.create(model=MODEL, prompt=f"{PROMPT}, {'cat' if i % 2 else 'dog'}", max_tokens=30,
                                            temperature=0, stream=True)
        return "".join([c.text async for k in stream for c in k.choices])

    async def all_of_them():
        async with AsyncOpenAI(base_url=server.address + "/v1", api_key="none", max_retries=0) as c:
            return await asyncio.gather(*(one(c, i) for i in range(16)))

    texts = asyncio.run(all_of_them())
    assert len(set(texts[0::2])) == 1 and len(set(texts[1::2])) == 1 and texts[0] != texts[1], texts


def embeddings_are_equal_in_both_encodings():
    texts = ["The cat sat.", "The dog ran away quickly."]
    packed = lax().embeddings.create(model=MODEL, input=texts)  # base64 is this client's default
    plain = client().embeddings.create(model=MODEL, input=texts, encoding_format="float")
    for i in range(2):
        a, b = packed.data[i].embedding, plain.data[i].embedding
        assert packed.data[i].index == i and max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-6
        assert abs(sum(x * x for x in a) - 1) < 1e-4
    assert packed.data[0].embedding != packed.data[1].embedding and packed.usage.total_tokens > 5


def models_are_listed():
    models = client().models.list().data
    assert [m.id for m in models] == [MODEL] and client().models.retrieve(MODEL).id == MODEL
    raises(openai.NotFoundError, lambda: client().models.retrieve("other"), code="model_not_found")


def responses_and_their_events():
    more = {"model": MODEL, "input": "A story about a dog.", "max_output_tokens": 25, "temperature": 0}
    whole = client().responses.create(**more)
    assert whole.object == "response" and whole.usage.output_tokens <= 25 and len(whole.output_text) > 20
    assert whole.status in ("completed", "incomplete")
    events = list(client().responses.create(stream=True, **more))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[0].type == "response.created" and events[-1].type == f"response.{whole.status}"
    with client().responses.stream(**more) as stream:
        final = next(e for e in stream if e.type in ("response.completed", "response.incomplete")).response
    assert final.output_text == whole.output_text


def errors_have_their_classes_and_fields():
    raises(openai.NotFoundError, lambda: client().completions.create(model="other", prompt="a"), code="model_not_found",
           param="model", status_code=404)
    raises(openai.BadRequestError, lambda: story(temperature=3), param="temperature", type="invalid_request_error")
    raises(openai.BadRequestError, lambda: story(prompt="a " * 2000), code="context_length_exceeded")
    raises(openai.BadRequestError, lambda: client().chat.completions.create(
        model=MODEL, messages=CHAT, tools=[{"type": "function", "function": {"name": "f"}}]), param="tools")
    raises(openai.BadRequestError, lambda: client().chat.completions.create(
        model=MODEL, messages=CHAT, response_format={"type": "json_object"}), param="response_format")
    raises(openai.BadRequestError, lambda: story(stream=True, max_tokens=-7), param="max_tokens")
    raises(openai.NotFoundError, lambda: client().files.list(), code="unknown_url")
    raises(openai.APIStatusError, lambda: story(prompt="x" * (3 << 20)), status_code=413, code="request_too_large")


def a_closed_stream_is_cancelled():
    with Server("--engine", "null", "--null-rate", "50", "--log-level", "error") as slow:
        stream = lax(slow).completions.create(model=MODEL, prompt="a", max_tokens=400, stream=True)
        next(iter(stream))
        assert slow.running() == 1
        stream.close()
        wait_for("it is cancelled", lambda: slow.running() == 0, 5)
        impatient = client(slow, timeout=0.3)
        raises(openai.APITimeoutError, lambda: impatient.completions.create(model=MODEL, prompt="a", max_tokens=400))
        wait_for("it is cancelled", lambda: slow.running() == 0, 5)


def an_overloaded_server_is_asked_again_when_it_said():
    with Server("--engine", "null", "--null-rate", "50", "--max-running", "1", "--max-waiting", "0", "--log-level",
                "error") as small:
        blocker = lax(small).completions.create(model=MODEL, prompt="a", max_tokens=60, stream=True)
        frames = iter(blocker)
        next(frames)
        error = raises(openai.RateLimitError, lambda: client(small).completions.create(model=MODEL, prompt="b"),
                       code="server_overloaded", status_code=429)
        wait = float(error.response.headers["retry-after"])
        assert 0 < wait <= 60
        times = []

        def note(_):
            times.append(time.monotonic())

        with httpx.Client(event_hooks={"request": [note]}) as http:
            done = threading.Thread(target=lambda: list(frames))
            done.start()
            patient = client(small, max_retries=5, http_client=http)
            answer = patient.completions.create(model=MODEL, prompt="b", max_tokens=1)
            done.join()
        assert answer.choices[0].text and len(times) >= 2, times
        # The hint in milliseconds goes before the one in seconds.
        hint = float(error.response.headers.get("retry-after-ms", wait * 1000)) / 1000
        assert times[1] - times[0] >= min(hint, 1) * 0.9, (times, hint)


def a_permanent_error_is_not_asked_again():
    tries = []
    with httpx.Client(event_hooks={"request": [tries.append]}) as http:
        raises(openai.BadRequestError,
               lambda: client(max_retries=3, http_client=http).completions.create(model=MODEL, prompt="a", n=1000))
    assert len(tries) == 1


def keys_and_quotas_speak_the_clients_language():
    with tempfile.NamedTemporaryFile("w") as keys:
        keys.write("ann good\nbob rare requests-per-minute=1\ncid poor tokens-per-minute=100\n")
        keys.flush()
        with Server("--engine", "null", "--log-level", "error", "--api-keys", keys.name) as locked:
            ask = {"model": MODEL, "prompt": "a", "max_tokens": 1}
            raises(openai.AuthenticationError, lambda: client(locked).completions.create(**ask), status_code=401)
            assert client(locked).with_options(api_key="good").completions.create(**ask).choices
            rare = client(locked).with_options(api_key="rare")
            rare.completions.create(**ask)
            error = raises(openai.RateLimitError, lambda: rare.completions.create(**ask), code="rate_limit_exceeded")
            assert 30 <= float(error.response.headers["retry-after"]) <= 60
            tries = []
            with httpx.Client(event_hooks={"request": [tries.append]}) as http:
                poor = client(locked, max_retries=3, http_client=http).with_options(api_key="poor")
                raises(openai.RateLimitError, lambda: poor.completions.create(**{**ask, "max_tokens": 300}))
            assert len(tries) == 1, "what never fits was asked again"


def an_end_in_the_middle_of_a_stream_is_an_error():
    with Server("--engine", "null", "--null-rate", "50", "--log-level", "error") as dying:
        stream = iter(lax(dying).completions.create(model=MODEL, prompt="a", max_tokens=400, stream=True))
        next(stream)
        dying.process.send_signal(signal.SIGTERM)
        next(stream)
        dying.process.send_signal(signal.SIGTERM)
        error = raises(openai.APIError, lambda: list(stream))
        assert "shut" in str(error), error
        assert dying.process.wait(timeout=20) == 1
    raises(openai.APIConnectionError, lambda: client(dying).models.list())


def langchain_works_unchanged():
    from langchain_openai import ChatOpenAI, OpenAI as Completions, OpenAIEmbeddings
    where = {"base_url": server.address + "/v1", "api_key": "none", "model": MODEL}
    chat = ChatOpenAI(temperature=0, max_tokens=25, max_retries=0, **where)
    messages = [("system", "You tell stories."), ("human", "A story about a cat.")]
    whole = chat.invoke(messages)
    assert whole.usage_metadata["output_tokens"] <= 25 and len(whole.content) > 20
    assert "".join(c.content for c in chat.stream(messages)) == whole.content
    assert [m.content for m in chat.batch([messages] * 3)] == [whole.content] * 3
    bound = chat.bind(logprobs=True, stop=["."]).invoke(messages)
    assert bound.response_metadata["logprobs"]["content"] and "." not in bound.content
    assert asyncio.run(chat.ainvoke(messages)).content == whole.content
    plain = Completions(temperature=0, max_tokens=40, max_retries=0, **where)
    assert plain.invoke(PROMPT) == story().choices[0].text
    vectors = OpenAIEmbeddings(check_embedding_ctx_length=False, **where).embed_documents(["A cat.", "A dog."])
    assert len(vectors) == 2 and vectors[0] != vectors[1]


with Server("--log-level", "error") as server:
    status = run_tests([
        completions_have_the_declared_shape, a_stream_is_the_same_answer_in_parts, request_ids_go_both_ways,
        several_prompts_and_choices_are_indexed_and_seeded, logprobs_of_an_echo_line_up_with_the_text,
        chats_have_the_declared_shape, chat_streams_add_up_to_the_answer, concurrent_streams_are_alike,
        embeddings_are_equal_in_both_encodings, models_are_listed, responses_and_their_events,
        errors_have_their_classes_and_fields, a_closed_stream_is_cancelled,
        an_overloaded_server_is_asked_again_when_it_said, a_permanent_error_is_not_asked_again,
        keys_and_quotas_speak_the_clients_language,
        an_end_in_the_middle_of_a_stream_is_an_error, langchain_works_unchanged])
sys.exit(status)
