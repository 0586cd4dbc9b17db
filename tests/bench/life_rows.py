"""Rows about the life of a request and of the process."""
import concurrent.futures
import http.client
import json
import socket
import tempfile
import time

import serving
from anchors import Ours, median

LONG = "Once upon a time there was a little dog who liked to run and play all day . " * 14


def post(server, body, path="/v1/completions"):
    """A socket with the request sent."""
    data = json.dumps(body).encode()
    s = socket.create_connection(("127.0.0.1", server.port))
    s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
              % (path.encode(), len(data)) + data)
    return s


def ask(server, body, path="/v1/completions"):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, (answer.status, text[:200])
    return json.loads(text)


def wait_for(server, condition, patience=10):
    begun = time.monotonic()
    while not condition(m := server.metrics()):
        if time.monotonic() - begun > patience:
            raise RuntimeError("the state does not come")
    return m


def used_blocks(m):
    return m["gptqt_kv_blocks"] - m["gptqt_kv_blocks_free"]


def freed_after_leaving(server, s, running):
    """Milliseconds from the client's leaving until only `running` sequences and their blocks are there."""
    begun = time.monotonic()
    s.close()
    wait_for(server, lambda m: m["gptqt_requests_running"] <= running and m["gptqt_requests_waiting"] == 0 and
             (running or used_blocks(m) == 0))
    return (time.monotonic() - begun) * 1000


def endless(stream):
    return {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": stream}


def cancel_states(server, stream):
    """On the null engine at 100 tokens a second, whose sequences last as long as they are needed."""
    # In the midst of its answer.
    s = post(server, endless(stream))
    wait_for(server, lambda m: m["gptqt_requests_running"] == 1)
    if stream:
        s.recv(4096)
    yield "decoding", freed_after_leaving(server, s, 0)
    # Behind others: two run in this server.
    holders = [post(server, endless(stream)) for _ in range(2)]
    wait_for(server, lambda m: m["gptqt_requests_running"] == 2)
    s = post(server, endless(stream))
    wait_for(server, lambda m: m["gptqt_requests_waiting"] == 1)
    yield "queued", freed_after_leaving(server, s, 2)
    for holder in holders:
        holder.close()
    wait_for(server, lambda m: m["gptqt_requests_running"] == 0)
    # Generated, and never read.
    done = server.metrics()["gptqt_sequences_finished_total"]
    s = post(server, {**endless(stream), "max_tokens": 4})
    wait_for(server, lambda m: m["gptqt_sequences_finished_total"] > done)
    yield "unread", freed_after_leaving(server, s, 0)


def cancel_prompt(server, stream):
    """With a model, in the midst of a prompt that takes it several steps."""
    s = post(server, {**endless(stream), "prompt": f"{time.monotonic()} " + LONG, "max_tokens": 20})
    wait_for(server, lambda m: m["gptqt_requests_running"] == 1)
    return freed_after_leaving(server, s, 0)


def cancel(options):
    times, polls = {}, []
    # Not on one CPU: there the loop would wait for the engine's thread, which is another matter.
    flags = [serving.STORIES, "--max-running", "2", "--threads", "1"]
    with serving.Server(*flags, "--engine", "null", "--null-rate", "100") as null, \
            serving.Server(*flags, "--step-tokens", "16") as model:
        for _ in range(20):
            begun = time.monotonic()
            null.metrics()
            polls.append((time.monotonic() - begun) * 1000)
        for _ in range(2 * options.rounds):
            for stream in (False, True):
                kind = " stream" if stream else ""
                for state, ms in cancel_states(null, stream):
                    times.setdefault(state + kind, []).append(ms)
                times.setdefault("prompt" + kind, []).append(cancel_prompt(model, stream))
        m = model.metrics()
        step = m["gptqt_busy_seconds_total"] / m["gptqt_steps_total"] * 1000
    worst = max(max(v) for v in times.values())
    told = ", ".join(f"{state} {median(v):.1f}" for state, v in times.items())
    return {"target": "cancelled: slot and KV free within a step plus 10 ms, in all states",
            "measured": f"ms, medians of {2 * options.rounds}: {told}; worst {worst:.1f} (with the time to ask for it, "
                        f"{median(polls):.1f}; a step of the model takes {step:.1f})",
            "met": worst <= step + 10 + median(polls), "times": times}


def start(options):
    listening, ready = [], []
    for _ in range(max(5, options.rounds)):
        port = serving.free_port()
        begun = time.monotonic()
        process = serving.subprocess.Popen([serving.GPTQT, "serve", serving.STORIES, "--port", str(port), "--log-level",
                                            "error"], stdout=serving.subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.0005)
        listening.append((time.monotonic() - begun) * 1000)
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health")
            status = connection.getresponse().status
            connection.close()
            if status == 200:
                break
            time.sleep(0.001)
        ready.append((time.monotonic() - begun) * 1000)
        process.kill()
        process.wait()
    return {"target": "start: listening below 100 ms", "met": median(listening) < 100,
            "measured": f"listening after {median(listening):.1f} ms (worst {max(listening):.1f}), ready with the story "
                        f"model (7 MB) after {median(ready):.1f} ms", "listening": listening, "ready": ready}


def drain(options):
    """SIGTERM in the midst of a load: what runs ends whole, what comes is told to come back."""
    results, times = [], []
    for _ in range(min(3, options.rounds)):
        with Ours("--engine", "null", "--null-rate", "50", "--max-running", "128", "--step-tokens", "512") as server:
            run = serving.start_load(server, "--mix", "stream=2,completion=1", "--clients", 64, "--tokens", "50-100",
                                     "--seconds", 4, "--patient", "--timeout", 8, "--expect", "first", "--ramp", 1)
            time.sleep(3)
            running = server.metrics()["gptqt_requests_running"]
            begun = time.monotonic()
            status = server.stop()
            times.append(time.monotonic() - begun)
            again = serving.Server(serving.STORIES, "--engine", "null", port=server.port)
            result = serving.end_load(run)
            again.stop()
            results.append((status, int(running), result))
    bad = sum(r["lost"] + r["wrong"] for _, _, r in results)
    return {"target": "drain: no running request fails (behind proxies: tests/peers rolling)",
            "measured": f"{len(results)} times SIGTERM with {', '.join(str(n) for _, n, _ in results)} running: {bad} lost, "
                        f"status {', '.join(str(s) for s, _, _ in results)}, gone after {median(times):.2f} s",
            "met": bad == 0 and not any(s for s, _, _ in results), "results": results}


def choice_of(answer):
    choice = answer["choices"][0]
    return json.dumps([choice["text"], choice["logprobs"], choice["finish_reason"]])


def determinism(options):
    bodies = [{"prompt": LONG + f"{i % 16} and" + " big" * (i % 23), "max_tokens": 24, "temperature": 0,
               "logprobs": 5, "ignore_eos": True} for i in range(64)]
    with Ours("--max-running", "1") as alone:
        single = [choice_of(ask(alone, body)) for body in bodies]
        again = [choice_of(ask(alone, body)) for body in bodies]
        cached = alone.metrics().get("gptqt_prefix_hit_tokens_total", 0)
    different, widest = sum(a != b for a, b in zip(single, again)), 0
    with Ours("--max-running", "64", "--max-waiting", "256") as server:
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            for _ in range(2):
                batch = [pool.submit(ask, server, body) for body in bodies]
                while not all(b.done() for b in batch):
                    widest = max(widest, server.metrics()["gptqt_requests_running"])
                different += sum(s != choice_of(b.result()) for s, b in zip(single, batch))
    return {"target": "identical tokens and log probabilities for batch 1 and 64, cached and not",
            "measured": f"64 prompts of 24 tokens, alone, alone again ({cached:.0f} tokens from the cache), twice together "
                        f"({widest:.0f} at once): {different} of 192 answers differ",
            "met": different == 0 and widest > 8 and cached > 0}


def fairness(options):
    """Ten equal keys with more work than there is time for, one of them with sixteen times as much."""
    names = [f"key-{i}" for i in range(10)]
    runs = []
    with tempfile.NamedTemporaryFile("w") as keys:
        keys.writelines(f"tenant{i} {name}\n" for i, name in enumerate(names))
        keys.flush()
        for _ in range(min(3, options.rounds)):
            with Ours("--api-keys", keys.name, "--max-running", "8", "--max-waiting", "512") as server:
                runs.append(serving.load(server, "--mix", "stream=1,completion=1", "--tokens", "8-48", "--subjects", 32,
                                         "--clients", 40, "--flood", 60, "--keys", ",".join(names), "--warmup", 2,
                                         "--seconds", 6, "--expect", "first"))
    index = median([r["fairness"] for r in runs])
    shares = [sorted(r["key_tokens"]) for r in runs]
    bad = sum(r["lost"] + r["wrong"] + r["refused"] for r in runs)
    return {"target": "fairness: Jain's index at least 0.95 for 10 equal keys, one flooding",
            "measured": f"{index:.4f}; the flooding key got {median([r['key_tokens'][0] for r in runs]):,.0f} tokens, the "
                        f"others {median([s[0] for s in shares]):,.0f} to {median([s[-1] for s in shares]):,.0f}, {bad} not "
                        "served", "met": index >= 0.95 and bad == 0, "runs": runs}


ROWS = {"cancel": cancel, "start": start, "drain": drain, "fairness": fairness, "determinism": determinism}
