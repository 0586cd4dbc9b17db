"""What the programs of this folder share: servers of our own and the running of tests (TAP)."""
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GPTQT = os.path.join(ROOT, os.environ.get("BUILD", "build"), "server/gptqt")
STORIES = os.path.join(ROOT, "deploy/models/stories")


def free_port():
    """One that stays free while its server is restarted: not of those that connections get."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as f:
        end = int(f.read().split()[0])
    while True:
        port = random.randrange(min(10000, end // 2), end)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def wait_for(what, condition, seconds=30):
    """Polls until the condition gives something true, and returns it."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.02)


class Server:
    """gptqt serve with its log in a file; ready when the constructor returns."""

    def __init__(self, *arguments, log=None, model=STORIES, port=0):
        out = open(log, "a", encoding="utf-8") if log else None
        self.process = subprocess.Popen([GPTQT, "serve", model, "--port", str(port), *arguments],
                                        stdout=subprocess.PIPE, stderr=out, text=True)
        if out:
            out.close()
        line = self.process.stdout.readline()
        assert line, f"the server does not start: status {self.process.wait(timeout=30)}"
        self.address = re.search(r"http://[0-9.:]+", line)[0]
        self.port = int(self.address.rsplit(":", 1)[1])
        wait_for("the server is ready", self.is_ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def get(self, path):
        with urllib.request.urlopen(self.address + path, timeout=10) as answer:
            return answer.read().decode()

    def post(self, path, body):
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def is_ready(self):
        try:
            return self.get("/health/ready")
        except OSError:
            assert self.process.poll() is None, "the server has ended"
            return None

    def running(self):
        return json.loads(self.get("/health"))["running"]

    def end(self):
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def run_tests(tests):
    """Runs functions, prints a line for each and the count; returns the exit status."""
    passed = failed = 0
    for test in tests:
        try:
            test()
            passed += 1
            print(f"ok - {test.__name__}", flush=True)
        except Exception as e:  # a failed test must not hide the others
            failed += 1
            print(f"not ok - {test.__name__}\n# {type(e).__name__}: {str(e)[-2000:]!r}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
