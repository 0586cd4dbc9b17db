"""The API on the CPU and on an emulated GPU: backends.py FOLDER-OF-GPTQT TOKENIZER FAKE-SERVE SUITE...

The suites run on the fake engine while their requests are recorded; then two servers with a tiny coded model
answer each of them, and more that ask for real texts. tests/support/same_answer.py says what has to be equal:
greedy answers to the token. Every documented endpoint and field has to be among the requests. TAP.
"""
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import same_answer  # noqa: E402
import served  # noqa: E402
import tiny_checkpoint as tiny  # noqa: E402

FOLDER, TOKENIZER, FAKE_SERVE = map(os.path.abspath, sys.argv[1:4])
SUITES = list(map(os.path.abspath, sys.argv[4:]))
GPTQT, QUANTIZE = os.path.join(FOLDER, "gptqt"), os.path.join(FOLDER, "gptqt-quantize")
PATIENCE = 120
AT_ONCE = 8
LARGE = 4096  # bytes of a body: what has more is about the parser's limits
FEW = 3  # tokens of an answer whose request leaves its length open
LENGTHS = {"/v1/completions": ["max_tokens"], "/v1/chat/completions": ["max_tokens", "max_completion_tokens"],
           "/v1/responses": ["max_output_tokens"]}
TEXT = "The cat that the other one had seen in the garden went on"
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Who is there?"}]


class Server(served.Served):
    def __init__(self, model, backend, *flags):
        super().__init__([GPTQT, "serve", model, "--backend", backend, "--port", "0", "--threads", "1", "--log-level",
                          "error", "--served-model-name", "builtin", "--kv-tokens", "2048", *flags])

    def send(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.address.split("//")[1], timeout=PATIENCE)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"Content-Type": "application/json", **names})
        return connection

    def ask(self, method, path, body=None, **headers):
        connection = self.send(method, path, body, **headers)
        try:
            answer = connection.getresponse()
            return types.SimpleNamespace(status=answer.status, headers=dict(answer.getheaders()),
                                         body=answer.read().decode())
        finally:
            connection.close()

    def metric(self, name):
        return float(re.search(rf"^{name} (\S+)$", self.ask("GET", "/metrics").body, re.M)[1])

    def until_idle(self):
        end = time.monotonic() + PATIENCE
        while self.metric("gptqt_requests_running") or self.metric("gptqt_requests_waiting"):
            assert time.monotonic() < end, "sequences of a client that left go on"

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)


# -- Requests -----------------------------------------------------------------------------------


def record(folder):
    """What the suites ask, each request once: (method, path, body)."""
    found = {}
    for suite in SUITES:
        path = os.path.join(folder, os.path.basename(suite))
        done = subprocess.run([suite, "--tap", "-j1"], capture_output=True, text=True, timeout=PATIENCE,
                              env=dict(os.environ, GPTQT_FAKE_SERVE=FAKE_SERVE, GPTQT_CLIENT_RECORD=path))
        assert done.returncode == 0, (suite, done.stdout)
        with open(path, "rb") as f:
            parts = f.read().split(b"\0")[:-1]
        for line, body in zip(parts[::2], parts[1::2]):
            found[line.decode(), body] = None
    return [(*line.split(" ", 1), body) for line, body in found if len(body) < LARGE]


def fields_of(body):
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def shorten(request):
    """The same request for a few tokens, where it leaves their number open."""
    method, path, body = request
    names, fields = LENGTHS.get(path), fields_of(body)
    if not names or not fields or any(name in fields for name in names):
        return request
    return method, path, b'{"%s":%d,' % (names[0].encode(), FEW) + body.lstrip()[1:]


def is_sampled(body):
    fields = fields_of(body)
    heat = fields.get("temperature")
    return isinstance(heat, (int, float)) and heat > 0 and fields.get("top_k") != 1


def post(path, **fields):
    return "POST", "/v1/" + path, json.dumps(fields).encode()


def completions():
    few = {"max_tokens": 5}
    yield post("completions", prompt=TEXT)
    yield post("completions", prompt=TEXT, max_tokens=9, return_token_ids=True)
    yield post("completions", prompt=[TEXT, "b c", "x"], n=2, logprobs=3, echo=True, **few)
    yield post("completions", prompt=[[1, 299, 40, 7], [5]], prompt_logprobs=2, best_of=2, **few)
    yield post("completions", prompt=TEXT, max_tokens=0, echo=True, logprobs=2)
    yield post("completions", prompt=TEXT, truncate_prompt_tokens=7, **few)
    for end in {}, {"min_tokens": 3}, {"ignore_eos": True, "skip_special_tokens": False, **few}:
        yield post("completions", prompt="a", logit_bias={str(tiny.STOP): 100}, **end)
    yield post("completions", prompt="a", frequency_penalty=2, presence_penalty=2, max_tokens=12)
    yield post("completions", prompt="a", repetition_penalty=5, max_tokens=12)
    yield post("completions", prompt="a", temperature=1, top_k=1, seed=3, **few)
    for heat in ({"temperature": 0.8, "top_p": 0.9}, {"temperature": 2, "min_p": 0.1}, {"temperature": 1, "top_k": 5}):
        yield post("completions", prompt=TEXT, seed=4, n=2, logprobs=2, ignore_eos=True, **heat, **few)
    yield post("completions", prompt=TEXT, temperature=1, seed=-1, best_of=3, n=2, ignore_eos=True, **few)
    yield post("completions", prompt=TEXT * 3)


def other_endpoints():
    yield post("chat/completions", messages=CHAT)
    yield post("chat/completions", messages=CHAT, n=2, max_tokens=5, logprobs=True, top_logprobs=2,
               return_token_ids=True)
    yield post("chat/completions", messages=CHAT * 3)
    yield post("responses", input=CHAT, instructions="Say nothing.", max_output_tokens=6)
    yield post("responses", input=TEXT * 3, truncation="auto", max_output_tokens=6)
    yield post("responses", input=TEXT * 3)
    for pooling in "last", "mean":
        yield post("embeddings", input=[TEXT, "x", [5, 6]], pooling=pooling, dimensions=tiny.HIDDEN)
    yield post("embeddings", input=TEXT, encoding_format="base64", normalize=False)
    yield post("tokenize", prompt=TEXT, return_token_strs=True)
    yield post("tokenize", messages=CHAT)
    yield post("detokenize", tokens=[299, 40, 7])
    yield post("explain", prompt=[TEXT, "a"], n=2, max_tokens=10)
    yield post("explain", messages=CHAT * 3)


def streams():
    usage = {"include_usage": True, "continuous_usage_stats": True}
    yield post("completions", prompt=TEXT, max_tokens=9, stream=True, stream_options=usage)
    yield post("completions", prompt=[TEXT, "b c"], max_tokens=5, n=2, stream=True, logprobs=2, echo=True)
    yield post("completions", prompt=TEXT, max_tokens=5, temperature=1, seed=4, stream=True, ignore_eos=True)
    yield post("chat/completions", messages=CHAT, max_tokens=5, stream=True, logprobs=True, top_logprobs=1,
               stream_options={"include_usage": True})
    yield post("chat/completions", messages=CHAT * 3, stream=True)
    yield post("responses", input=CHAT, max_output_tokens=5, stream=True)


def small_ones():
    for path in ("v1/models", "v1/models/builtin", "v1/models/x", "health", "ping", "health/live", "health/ready",
                 "health/startup", "v2/health/live", "v2/health/ready", "metrics", "load", "is_sleeping", "version",
                 "openapi.json", "", "index.html", "app.js", "style.css", "nothing", "v1/completions"):
        yield "GET", "/" + path, b""
    yield "DELETE", "/v1/requests/none", b""
    yield "OPTIONS", "/v1/completions", b""


# -- Both servers -------------------------------------------------------------------------------


class Pair:
    """A server on the CPU and one on the emulated GPU, and what they were asked."""

    def __init__(self, model, *flags):
        self.model, self.flags, self.asked = model, flags, []

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.servers = [stack.enter_context(Server(self.model, backend, *self.flags))
                            for backend in ("cpu", "cuda-emu")]
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def ask(self, method, path, body=None, **headers):
        """The answer, which is the same from both."""
        a, b = (server.ask(method, path, body, **headers) for server in self.servers)
        found = same_answer.compare(a, b, is_sampled(body or b""))
        assert not found, (path, body, found)
        return a

    def until_idle(self):
        for server in self.servers:
            server.until_idle()

    def hold(self, requests, at_once=1):
        """Both answer each of them alike, also when several run at a time."""
        answers, found = [], []
        self.until_idle()
        for server in self.servers:
            with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
                answers.append(list(pool.map(lambda request: server.ask(*request), requests)))
        for request, a, b in zip(requests, *answers):
            found += [f"{request}: {line}" for line in same_answer.compare(a, b, is_sampled(request[2]))]
        self.asked += zip(requests, answers[1])
        assert not found, "\n".join([f"{len(found)} differences"] + found[:20])


def the_suites_requests_are_answered_alike(pair):
    alone = [r for r in pair.recorded if r[0] == "GET" or r[1] == "/v1/explain"]  # they tell what else runs
    assert len(pair.recorded) > 500, len(pair.recorded)
    pair.hold([shorten(r) for r in pair.recorded if r not in alone], AT_ONCE)
    pair.hold(alone)


def requests_about_a_text_are_answered_alike(pair):
    pair.hold([*completions(), *other_endpoints()])


def streams_are_alike(pair):
    pair.hold(list(streams()))


def small_endpoints_are_alike(pair):
    pair.hold(list(small_ones()))


# -- What answers have to say ---------------------------------------------------------------------


def choices(answer):
    return json.loads(answer.body)["choices"]


def greedy_answers_are_texts(pair):
    """Equal would be empty ones, too."""
    texts = {choice["text"] for request, answer in pair.asked if answer.status == 200 and not is_sampled(request[2])
             and request[1] == "/v1/completions" and b'"stream"' not in request[2] for choice in choices(answer)}
    assert len(texts) > 40 and sum(len(text) > 8 for text in texts) > 5, texts
    text = choices(pair.ask(*post("completions", prompt=TEXT)))[0]["text"]
    others = [choices(pair.ask(*post("completions", prompt=TEXT, **{name: 2})))[0]["text"]
              for name in ("frequency_penalty", "repetition_penalty")]
    assert text not in others, (text, others)


def stops_end_both_alike(pair):
    whole = choices(pair.ask(*post("completions", prompt=TEXT, max_tokens=12, return_token_ids=True)))[0]
    stop = whole["text"][6:8]
    for stream in False, True:
        pair.ask(*post("completions", prompt=TEXT, max_tokens=12, stop=["none", stop], stream=stream))
    cut = choices(pair.ask(*post("completions", prompt=TEXT, max_tokens=12, stop=stop)))[0]
    assert cut["finish_reason"] == "stop" and cut["stop_reason"] == stop, cut
    assert cut["text"] == whole["text"][:whole["text"].index(stop)], (cut, whole)
    token = whole["token_ids"][5]
    cut = choices(pair.ask(*post("completions", prompt=TEXT, max_tokens=12, stop_token_ids=[token])))[0]
    assert cut["finish_reason"] == "stop" and cut["stop_reason"] == token, cut
    ended = choices(pair.ask(*post("completions", prompt=TEXT, logit_bias={str(tiny.STOP): 100})))[0]
    assert ended["finish_reason"] == "stop" and ended["text"] == "", ended


def drawn_tokens_depend_on_the_seed_alone(pair):
    gpu = pair.servers[1]
    for sampling in {"top_p": 0.9}, {"min_p": 0.01}, {"top_k": 50}, {"frequency_penalty": 1}:
        def texts(seed):
            body = dict(prompt=TEXT, temperature=1.5, seed=seed, n=3, max_tokens=6, ignore_eos=True, **sampling)
            return [choice["text"] for choice in choices(gpu.ask(*post("completions", **body)))]
        first = texts(1)
        assert texts(1) == first and len(set(first)) == 3 and texts(2)[0] == first[1], first


def beginnings_that_are_known_are_found(pair):
    for server in pair.servers:
        body = post("completions", prompt=TEXT, max_tokens=5, cache_salt="other")
        first, second = (json.loads(server.ask(*body).body) for _ in range(2))
        cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in (first, second)]
        assert cached == [0, 32] and first["choices"] == second["choices"], (cached, first, second)


def documented(document):
    """Fields by endpoint."""
    def names(schema):
        if "$ref" in schema:
            return names(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        return set(schema.get("properties", ())).union(*map(names, schema.get("anyOf", ())))

    for path, methods in document["paths"].items():
        for method, row in methods.items():
            content = row.get("requestBody", {}).get("content", {}).get("application/json", {})
            yield method.upper(), path, names(content.get("schema", {}))


def every_documented_endpoint_and_field_was_asked(pair):
    """Aliases and explanations read the same fields as the endpoint itself, by the same parser."""
    document = json.loads(pair.servers[0].ask("GET", "/openapi.json").body)
    n = 0
    for method, path, fields in documented(document):
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
        asked = [r for r, _ in pair.asked if r[0] == method and re.fullmatch(pattern, r[1])]
        assert asked, (method, path)
        if path in ("/v1/tokenize", "/v1/detokenize", "/v1/explain"):
            continue
        seen = {name for r in asked for name, value in fields_of(r[2]).items() if value is not None}
        assert not fields - seen, (path, fields - seen)
        n += len(fields)
    assert n > 150, n


# -- Clients that leave, and what is refused ------------------------------------------------------

# One may be over on the CPU before its client can leave: then there is another one.
LONG = {"prompt": ["a", "b"], "n": 8, "max_tokens": tiny.CONTEXT - 4, "ignore_eos": True, "stream": True}
TRIES = 100
BOB = {"authorization": "Bearer kb"}


@contextlib.contextmanager
def long_stream(server, body=LONG, **headers):
    """The answer from its second line on; its client leaves at the end."""
    connection = server.send("POST", "/v1/completions", body, **headers)
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline().startswith(b"data: "), answer.status
    yield answer
    answer.close()
    connection.close()
    server.until_idle()


def leave(server):
    """Whether something was cancelled."""
    before = server.metric("gptqt_sequences_cancelled_total")
    with long_stream(server):
        pass
    return server.metric("gptqt_sequences_cancelled_total") > before


def cancel(server):
    """The request is ended by its name; whether it still ran."""
    with long_stream(server, x_request_id="long-1") as answer:
        done = server.ask("DELETE", "/v1/requests/long-1")
        rest = answer.read().decode()
    assert rest.endswith("data: [DONE]\n\n") and done.status in (200, 404), (done, rest)
    return done.status == 200 and '"request_cancelled"' in rest


def overload(server):
    """One request takes all places; whether another one was refused."""
    with long_stream(server, dict(LONG, n=64), **BOB):
        other = server.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, **BOB)
    assert other.status == 200 or other.status == 429 and '"server_overloaded"' in other.body, other
    return other.status == 429


def clients_that_leave_free_their_places(pair):
    body = post("completions", prompt=TEXT, max_tokens=5)
    want = choices(pair.ask(*body))
    for end in leave, cancel:
        for server in pair.servers:
            assert any(end(server) for _ in range(TRIES)), end
        assert choices(pair.ask(*body)) == want


REFUSALS = [  # key, status, code, fields
    ("kb", 200, None, {}), ("kc", 401, "invalid_api_key", {}), ("", 401, "invalid_api_key", {}),
    ("kb", 413, "request_too_large", {"user": "u" * 5000}), ("kb", 400, None, {"unheard_of": 1}),
    ("kb", 400, "context_length_exceeded", {"prompt": TEXT}), ("kb", 404, "model_not_found", {"model": "x"}),
    ("kb", 400, None, {"n": 129}), ("ka", 429, "rate_limit_exceeded", {"max_tokens": 200}), ("ka", 200, None, {"n": 3})]


def refusals_are_alike(pair):
    """Of a server with keys and narrow limits, which serves what is inside them."""
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("ann ka tokens-per-minute=100\nbob kb\n")
        keys.flush()
        flags = ("--max-running", "8", "--max-waiting", "120", "--max-body", "4096", "--max-prompt-tokens", "20",
                 "--unknown-fields", "strict", "--api-keys", keys.name)
        with Pair(pair.model, *flags) as narrow:
            for (key, status, code, fields), stream in itertools.product(REFUSALS, (False, True)):
                narrow.until_idle()
                body = json.dumps({"prompt": "a", "max_tokens": 2, "stream": stream, **fields}).encode()
                answer = narrow.ask("POST", "/v1/completions", body, authorization="Bearer " + key)
                assert answer.status == status, (fields, answer)
                assert status == 200 or json.loads(answer.body)["error"]["code"] == code, (fields, answer)
            for server in narrow.servers:
                assert any(overload(server) for _ in range(TRIES)), server.process.args


CHANGES = [('"index":0', '"index":1'), ('"object":', '"objects":'), ('"total_tokens":', '"total_tokens":1'),
           ('"length"', '"stop"'), ("[-0.", "[0."), ("[0.", "[-0."), ('"text":"', '"text":"x'),
           ('"token_ids":[', '"token_ids":[1,'), ("data: {", "data: 1{")]


def a_difference_would_be_seen(pair):
    for fields in {}, {"stream": True}, {"temperature": 1, "seed": 1}:
        answer = pair.ask(*post("completions", prompt=TEXT, max_tokens=3, logprobs=1, return_token_ids=True, **fields))
        bodies = [answer.body.replace(old, new, 1) for old, new in CHANGES if old in answer.body]
        others = [dict(vars(answer), body=body) for body in bodies]
        others += [dict(vars(answer), status=201), dict(vars(answer), headers=dict(answer.headers, Allow="GET"))]
        assert len(others) > 6, answer
        for other in others:
            assert same_answer.compare(answer, types.SimpleNamespace(**other)), other


def make_model(folder):
    dense, coded = os.path.join(folder, "dense"), os.path.join(folder, "coded")
    tiny.write(dense, TOKENIZER)
    subprocess.run([QUANTIZE, "--method=rtn", dense, coded], check=True, capture_output=True, timeout=PATIENCE)
    return coded


TESTS = [the_suites_requests_are_answered_alike, requests_about_a_text_are_answered_alike, streams_are_alike,
         small_endpoints_are_alike, greedy_answers_are_texts, stops_end_both_alike,
         drawn_tokens_depend_on_the_seed_alone, beginnings_that_are_known_are_found,
         every_documented_endpoint_and_field_was_asked, clients_that_leave_free_their_places, refusals_are_alike,
         a_difference_would_be_seen]


def run_all(pair):
    bad = 0
    for test in TESTS:
        try:
            test(pair)
            print(f"ok - {test.__name__}", flush=True)
        except Exception as e:  # a failed test must not hide the others
            bad += 1
            print(f"not ok - {test.__name__}\n# {type(e).__name__}: {str(e)[:3000]!r}", flush=True)
    return bad


def main():
    print(f"TAP version 13\n1..{len(TESTS) + 1}")
    with tempfile.TemporaryDirectory() as folder:
        with Pair(make_model(folder), "--max-running", "8", "--max-waiting", "2000") as pair:
            pair.recorded = record(folder)
            bad = run_all(pair)
            ends = [server.end() for server in pair.servers]
            print("ok" if ends == [0, 0] else "not ok", "- both end in order")
    return 1 if bad or ends != [0, 0] else 0


sys.exit(main())
