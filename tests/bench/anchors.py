"""Servers of others to measure beside ours, and wrk."""
import os
import re
import shutil
import statistics
import subprocess
import tempfile

import serving

NGINX = """worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log /dev/null crit;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ default_type application/json; return 200 '{{"status":"ok"}}'; }}
  }}
}}
"""


TINY = os.path.join(serving.ROOT, "tests", "fixtures", "gguf", "model-Q8_0.gguf")


def pinned(cpu, command):
    """On a CPU of its own, where there are two."""
    return ["taskset", "-c", str(cpu), *command] if (os.cpu_count() or 1) > 1 else command


CLIENT = pinned(1, [])


class Nginx(serving.Server):
    def __init__(self):
        if not shutil.which("nginx"):
            subprocess.run([os.path.join(serving.ROOT, "deploy", "packages")], check=True, text=True,
                           input="nginx-light the anchor of requests a second\n")
        self.folder = tempfile.TemporaryDirectory()
        port = serving.free_port()
        path = os.path.join(self.folder.name, "nginx.conf")
        with open(path, "w", encoding="ascii") as out:
            out.write(NGINX.format(folder=self.folder.name, port=port))
        super().__init__(port=port, command=pinned(0, ["nginx", "-p", self.folder.name, "-c", path]))

    def workers(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as children:
            return [int(pid) for pid in children.read().split()]

    def cpu_seconds(self):
        return sum(serving.cpu_of(pid) for pid in self.workers())

    def kill(self):
        self.process.terminate()
        self.process.wait()


class Ours(serving.Server):
    def __init__(self, *flags, model=serving.STORIES):
        port = serving.free_port()
        super().__init__(port=port, command=pinned(0, [serving.GPTQT, "serve", model, "--port", str(port),
                                                       "--log-level", "error", "--threads", "1", *flags]))

    def loop_seconds(self):
        """Of the thread that owns the sockets, which is the first."""
        return serving.cpu_of(self.process.pid, self.process.pid)


class Llama(serving.Server):
    """llama-server with a model of half a million parameters, so that it is the server that counts."""

    def __init__(self, options, *flags):
        port = serving.free_port()
        super().__init__(port=port, patience=120, command=pinned(0, [
            options.llama, "-m", TINY, "--port", str(port), "--log-disable", "-t", "1", *flags]))


def wrk(server, path, connections, seconds, body=None):
    """Requests a second, and how many of them were not 2xx."""
    if not shutil.which("wrk"):
        subprocess.run([os.path.join(serving.ROOT, "deploy", "packages")], check=True, text=True, input="wrk asks\n")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if body:
            script.write("wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\n"
                         f"wrk.body = '{body}'\n")
            script.flush()
        flags = ["-s", script.name] if body else []
        run = subprocess.run(pinned(1, ["wrk", "-t", "1", "-c", str(connections), "-d", str(seconds), *flags,
                                        server.address + path]), capture_output=True, text=True, check=True)
    rate = float(re.search(r"Requests/sec:\s+([0-9.]+)", run.stdout)[1])
    total = int(re.search(r"(\d+) requests in", run.stdout)[1])
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", run.stdout)
    return rate, total, int(bad[1]) if bad else 0


def median(values):
    return statistics.median(values)
