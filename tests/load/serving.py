"""What the programs of this folder and of bench/server share: a server's process, a run of the
load generator, and the tests' closing line."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
GPTQT = os.path.join(BUILD, "server", "gptqt")
LOAD = os.path.join(BUILD, "tests", "load")
STORIES = os.path.join(ROOT, "deploy", "models", "stories")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


class Server:
    """gptqt serve, or any command that answers GET /health on its port."""

    def __init__(self, *flags, port=0, command=None, patience=60):
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = command or [GPTQT, "serve", "--port", str(self.port), "--log-level", "error", *flags]
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=sys.stderr)
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() - self.started > patience:
                self.kill()
                raise RuntimeError(f"{self.command[0]} does not serve")
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def healthy(self):
        try:
            with urllib.request.urlopen(self.address + "/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self, patience=60):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=patience)

    def metrics(self):
        with urllib.request.urlopen(self.address + "/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")
        return {name: float(value) for name, value in pairs}

    def memory(self, field="RssAnon"):
        """Bytes; RssAnon leaves out the mapped model and the program."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return int(re.search(rf"^{field}:\s+(\d+) kB", status.read(), re.M)[1]) * 1024

    def cpu_seconds(self):
        return cpu_of(self.process.pid)


def cpu_of(pid, thread=None):
    """Seconds on a CPU, exact: the counts in stat are sampled, and a thread that sleeps often is missed."""
    total = 0
    for tid in [thread] if thread else os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="ascii") as stat:
            total += int(stat.read().split()[0])
    return total / 1e9


def start_load(server, *flags, prefix=()):
    return subprocess.Popen([*prefix, LOAD, "--json", *map(str, flags), server.address], stdout=subprocess.PIPE,
                            text=True)


def end_load(process):
    text = process.communicate()[0]
    if process.returncode not in (0, 1) or not text:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    return json.loads(text)


def load(server, *flags, prefix=()):
    return end_load(start_load(server, *flags, prefix=prefix))


class Claims:
    """TAP lines, and at the end the line that CI counts by."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, good, text):
        self.passed += bool(good)
        self.failed += not good
        print(f"{'ok' if good else 'not ok'} - {text}", flush=True)

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed or not self.passed else 0


def raise_descriptors():
    """As many open files as the system allows; returns how many."""
    import resource  # not on every system, and only needed here
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
