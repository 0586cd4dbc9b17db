"""A rolling restart of two servers behind nginx, then behind HAProxy, under load: rolling.py

The proxies run the files of deploy/, with other addresses. Keep-alive clients ask all the time,
half of them for streams; each answer must be whole and belong to its request. Every server is
ended by SIGTERM and started again, in turn, twice. At the end one is killed: that the clients
see broken answers then shows that they would have seen them before.
"""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

from common import ROOT, Server, free_port, run_tests, wait_for

CLIENTS = 12
ROUNDS = 2
RATE = 100  # tokens a second of a sequence
LENGTHS = (1, 7, 40, 150)


class Client(threading.Thread):
    """One connection that asks again and again."""

    def __init__(self, number, port):
        super().__init__(daemon=True)
        self.number, self.port = number, port
        self.stream = number % 2 == 1
        self.done, self.failures = 0, []
        self.stop = threading.Event()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stop.is_set():
            try:
                self.ask(connection)
                self.done += 1
            except Exception as e:
                self.failures.append(f"{'stream' if self.stream else 'plain'}: {type(e).__name__} {e}"[:300])
                connection.close()
                self.stop.wait(0.05)
        connection.close()

    def ask(self, connection):
        length = LENGTHS[(self.done + self.number) % len(LENGTHS)]
        prompt = f"Client {self.number} asks {self.done}:"
        body = {"prompt": prompt, "max_tokens": length, "echo": True, "stream": self.stream, "ignore_eos": True}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        raw = answer.read().decode()
        assert answer.status == 200, (answer.status, raw)
        text, reason, usage = read_stream(raw) if self.stream else read_whole(raw)
        assert text.startswith(prompt) and text[len(prompt):].split() == ["the"] * length, text
        assert reason == "length" and usage["completion_tokens"] == length, (reason, usage)


def read_whole(raw):
    answer = json.loads(raw)
    choice = answer["choices"][0]
    return choice["text"], choice["finish_reason"], answer["usage"]


def read_stream(raw):
    frames = [f[len("data: "):] for f in raw.split("\n\n") if f.startswith("data: ")]
    assert frames and frames[-1] == "[DONE]", f"no end after {len(frames)} frames"
    frames = [json.loads(f) for f in frames[:-1]]
    assert not any("error" in f for f in frames), frames
    choices = [c for f in frames for c in f["choices"]]
    return "".join(c["text"] for c in choices), choices[-1]["finish_reason"], frames[-1]["usage"]


class Fleet:
    """Two servers that come back at the same ports."""

    def __init__(self, folder, *flags):
        self.flags = ["--engine", "null", "--null-rate", str(RATE), *flags]
        self.logs = [os.path.join(folder, f"server{i}.log") for i in range(2)]
        self.ports = [free_port(), free_port()]
        self.servers = [self.begin(i) for i in range(2)]

    def begin(self, i):
        return Server(*self.flags, log=self.logs[i], port=self.ports[i])

    def answered(self, i):
        """Completions of the server that runs now."""
        row = r'^gptqt_http_requests_total\{[^}]*/v1/completions[^}]*"200"[^}]*\} (\d+)'
        return sum(int(n) for n in re.findall(row, self.servers[i].get("/metrics"), re.M))

    def restart(self, i):
        """Returns how many requests were under way when the signal came."""
        under_way = wait_for("the server has work", self.servers[i].running)
        assert self.servers[i].end() == 0, "exit status"
        self.servers[i] = self.begin(i)
        wait_for("the new server is used", lambda: self.answered(i) >= 5)
        return under_way

    def close(self):
        for server in self.servers:
            server.kill()


def configure(folder, name, port, fleet):
    """The file of deploy/ with this test's addresses."""
    with open(os.path.join(ROOT, "deploy", name), encoding="utf-8") as f:
        text = f.read()
    for old, new in zip((8080, 8081, 8082), (port, *fleet.ports)):
        text, n = re.subn(rf"127\.0\.0\.1:{old}\b", f"127.0.0.1:{new}", text)
        assert n == 1, (name, old, n)
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return path


def run_proxy(folder, name, port, fleet):
    path = configure(folder, name, port, fleet)
    log = os.path.join(folder, "proxy.log")
    if name == "nginx.conf":
        command = ["nginx", "-c", path, "-e", log, "-g", f"daemon off; pid {folder}/nginx.pid;"]
    else:
        command = ["haproxy", "-f", path, "-db"]
    with open(log, "w", encoding="utf-8") as out:
        proxy = subprocess.Popen(command, stdout=out, stderr=out)

    def answers():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            assert proxy.poll() is None, open(log, encoding="utf-8").read()
            return False
        finally:
            connection.close()

    wait_for("the proxy answers", answers)
    return proxy


def roll(name, *flags):
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(folder, *flags)
        port = free_port()
        proxy, clients = None, []
        try:
            proxy = run_proxy(folder, name, port, fleet)
            clients = [Client(i, port) for i in range(CLIENTS)]
            for client in clients:
                client.start()
            for i in range(2):
                wait_for("both are used", lambda: fleet.answered(i) >= 5)
            under_way = sum(fleet.restart(i) for _ in range(ROUNDS) for i in range(2))
            done = sum(c.done for c in clients)
            failures = [f for c in clients for f in c.failures]
            print(f"# {name}: {done} requests, {under_way} under way at {2 * ROUNDS} restarts, {len(failures)} failed")
            assert not failures, failures[:5]
            assert min(c.done for c in clients) > 0

            wait_for("streams are under way", lambda: fleet.servers[0].running() >= 3)
            fleet.servers[0].process.send_signal(signal.SIGKILL)
            wait_for("a killed server breaks answers", lambda: any(c.failures for c in clients))
        finally:
            for client in clients:
                client.stop.set()
            for client in clients:
                client.join(timeout=30)
            if proxy:
                proxy.terminate()
                proxy.wait(timeout=30)
            fleet.close()


def nothing_fails_behind_nginx():
    roll("nginx.conf")


def nothing_fails_behind_nginx_with_a_drain_delay():
    roll("nginx.conf", "--drain-delay", "2")


def nothing_fails_behind_haproxy():
    roll("haproxy.cfg", "--drain-delay", "3")


sys.exit(run_tests([nothing_fails_behind_nginx, nothing_fails_behind_nginx_with_a_drain_delay,
                    nothing_fails_behind_haproxy]))
