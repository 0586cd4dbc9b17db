"""The whole chain as a user meets it: chain.py FOLDER-OF-GPTQT STORIES

run, serve (plain and streaming), logits and tokenize agree on the embedded model; a quantized
checkpoint works and is the same bytes each time; wrong usage is one line and a status. TAP.
"""
import filecmp
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import logits  # noqa: E402
import served  # noqa: E402

FOLDER, STORIES = sys.argv[1:3]
GPTQT = os.path.join(FOLDER, "gptqt")
PROMPT = "Once upon a time"
N = 40


def run(*arguments, text=None, status=0):
    done = subprocess.run([GPTQT, *arguments], input=text, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, (arguments, done.returncode, done.stderr)
    return done if status else done.stdout


def greedy(model):
    return run("run", model, PROMPT, "--temperature", "0", "-n", str(N), "--kv", "f32")


def ids_of(model, text):
    return json.loads(run("tokenize", model, text=json.dumps(text) + "\n"))


class Server(served.Served):
    def __init__(self, *arguments):
        super().__init__([GPTQT, "serve", "--port", "0", "--log-level", "error", *arguments])

    def ask(self, path, body):
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=60)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def check_agreement(model):
    text = greedy(model)
    assert len(text) > N, text
    body = {"prompt": PROMPT, "max_tokens": N, "temperature": 0}
    with Server(model, "--kv", "f32") as server:
        plain = json.load(server.ask("/v1/completions", body))
        assert plain["choices"][0]["text"] == text, (plain, text)
        assert plain["usage"]["completion_tokens"] == N
        frames = server.ask("/v1/completions", dict(body, stream=True)).read().decode().split("\n\n")
        frames = [f[len("data: "):] for f in frames if f.startswith("data: ")]
        assert frames[-1] == "[DONE]" and len(frames) > N, frames
        joined = "".join(c["text"] for f in frames[:-1] for c in json.loads(f)["choices"])
        assert joined == text
        assert server.end() == 0
    ids = ids_of(model, PROMPT + text)
    start = len(ids_of(model, PROMPT))
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "logits.safetensors")
        run("logits", model, "--ids", ",".join(map(str, ids)), "--out", out)
        rows = logits.read(out)
    for i in range(start - 1, len(ids) - 1):
        assert max(range(len(rows[i])), key=rows[i].__getitem__) == ids[i + 1], i


def run_serve_and_logits_agree_on_the_embedded_model():
    check_agreement("builtin")


def run_serve_and_logits_agree_on_the_source_model():
    check_agreement(STORIES)


def the_source_model_continues_as_transformers_does():
    golden = json.load(open(os.path.join(STORIES, "golden.json")))
    for case in golden["prompts"]:
        assert ids_of(STORIES, case["prompt"]) == case["ids"]
        text = run("run", STORIES, case["prompt"], "--temperature", "0", "-n", "32", "--kv", "f32")
        want = case["greedy_text"]
        assert want.startswith(text) or text.startswith(want), (text, want)


def a_checkpoint_is_the_same_bytes_each_time_and_works():
    flags = ["--bits", "3", "--windows", "2", "--ctx", "64", "--seed", "5"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in "ab"]
        for path in paths:
            run("quantize", STORIES, path, *flags)
        names = os.listdir(paths[0])
        assert "model.safetensors" in names and "config.json" in names, names
        _, different, missing = filecmp.cmpfiles(*paths, names, shallow=False)
        assert not different and not missing, (different, missing)
        facts = json.loads(run("inspect", paths[0], "--json"))
        assert facts["quantization"]["bits"] == 3 and 3 < facts["bits_per_weight"] < 4, facts
        assert len(greedy(paths[0])) > N
        valid = os.path.join(folder, "text")
        with open(valid, "w") as f:
            f.write((PROMPT + greedy(STORIES) + "\n") * 20)
        score = json.loads(run("eval", paths[0], "--text", valid, "--ctx", "64", "--against", STORIES, "--json"))
        for key in ("perplexity", "nll", "tokens", "ctx", "seconds", "kl_mean", "kl_p99", "top1_agreement"):
            assert key in score, key
        assert score["kl_mean"] < 1 and score["top1_agreement"] > 0.6, score


def bench_reports_what_it_measured():
    facts = json.loads(run("bench", "builtin", "--json", "--prompt", "16", "--gen", "8"))
    for key in ("prefill_tokens_per_second", "decode_tokens_per_second", "decode_mean_tokens_per_second",
                "time_to_first_token", "limit_fraction", "peak_memory_mb"):
        assert facts[key] > 0, (key, facts)
    again = json.loads(run("bench", "builtin", "--json", "--prompt", "16", "--gen", "8", "-t", "1"))
    assert facts["logits_hash"] == again["logits_hash"], "depends on the number of threads"
    alone = json.loads(run("bench", "builtin", "--json", "--prompt", "16", "--gen", "8", "--no-read"))
    assert alone["decode_tokens_per_second"] > 0 and alone["logits_hash"] == facts["logits_hash"], alone
    assert facts.keys() - alone.keys() == {"read_gb_per_second", "limit_fraction"}, alone.keys()


def text_and_ids_round_trip():
    texts = ["", "Once upon a time", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600", "a\u0000b", "<|im_start|>user"]
    ids = run("tokenize", "builtin", text="".join(json.dumps(t) + "\n" for t in texts))
    back = run("tokenize", "builtin", "--decode", text=ids).splitlines()
    assert [json.loads(line) for line in back] == texts, back


def templates_render_and_say_why_not():
    line = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True}
    want = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads(run("template", "builtin", text=json.dumps(line) + "\n")) == want
    line["tools"] = [{"type": "function"}]
    assert "tools" in json.loads(run("template", "builtin", text=json.dumps(line) + "\n"))["error"]


def wrong_usage_is_one_line_and_a_status():
    for arguments, status in ((["nonsense"], 2), (["eval"], 2), (["run", "builtin", "x", "--top-p", "7"], 2),
                              (["serve", "--port", "99999"], 2), (["bench", "--frobnicate"], 2), (["health", "x"], 2),
                              (["inspect", "/nonexistent"], 1), (["run", "/nonexistent", "x"], 1),
                              (["eval", "builtin", "--text", "/nonexistent"], 1),
                              (["quantize", STORIES, "/nonexistent/out"], 1)):
        done = run(*arguments, status=status)
        assert not done.stdout, arguments
        assert 1 <= len(done.stderr.strip().splitlines()) <= 3, (arguments, done.stderr)


def output_that_cannot_be_written_is_a_failure():
    for arguments in (["run", "builtin", PROMPT, "-n", "4"], ["chat", "builtin", "-n", "4"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([GPTQT, *arguments], input="Hi\n", stdout=full, stderr=subprocess.PIPE, text=True,
                                  timeout=60)
        assert done.returncode == 1 and "standard output" in done.stderr, (arguments, done)


def an_unknown_model_or_field_is_refused_by_name():
    with Server("builtin") as server:
        for body, status, param in (({"model": "other", "prompt": "a"}, 404, "model"),
                                    ({"prompt": "a", "temperature": "hot"}, 400, "temperature")):
            try:
                server.ask("/v1/completions", body)
                raise AssertionError(body)
            except urllib.error.HTTPError as e:
                assert e.code == status and json.load(e)["error"]["param"] == param, e


def health_is_asked_without_another_program():
    with Server("builtin") as server:
        port = server.address.rsplit(":", 1)[1]
        assert json.loads(run("health", "--port", port))["status"] == "ok"
        assert "status 404" in run("health", "--port", port, "/nothing", status=1).stderr
        assert server.end() == 0
    assert "refused" in run("health", "--port", port, status=1).stderr
    with tempfile.TemporaryDirectory() as folder:
        cert, key, path = (os.path.join(folder, name) for name in ("cert", "key", "socket"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                        "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"], check=True,
                       capture_output=True)
        with Server("builtin", "--tls-cert", cert, "--tls-key", key) as server:
            port = server.address.rsplit(":", 1)[1]
            assert json.loads(run("health", "--port", port, "--tls"))["status"] == "ok"
            assert "--tls" in run("health", "--port", port, status=1).stderr
        with subprocess.Popen([GPTQT, "serve", "builtin", "--unix-socket", path, "--log-level", "error"],
                              stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert json.loads(run("health", "--unix-socket", path, "/health/live"))["status"]
            process.terminate()


def main():
    print(f"TAP version 13\n1..{len(TESTS)}")
    bad = 0
    for test in TESTS:
        try:
            test()
            print(f"ok - {test.__name__}", flush=True)
        except Exception as e:  # a failed test must not hide the others
            bad += 1
            print(f"not ok - {test.__name__}\n# {type(e).__name__}: {str(e)[:1500]!r}", flush=True)
    return 1 if bad else 0


TESTS = [run_serve_and_logits_agree_on_the_embedded_model, run_serve_and_logits_agree_on_the_source_model,
         the_source_model_continues_as_transformers_does, a_checkpoint_is_the_same_bytes_each_time_and_works,
         bench_reports_what_it_measured, text_and_ids_round_trip, templates_render_and_say_why_not,
         wrong_usage_is_one_line_and_a_status, output_that_cannot_be_written_is_a_failure,
         an_unknown_model_or_field_is_refused_by_name, health_is_asked_without_another_program]
sys.exit(main())
