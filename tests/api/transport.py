"""The same server over TLS and over a Unix socket: transport.py FAKE-SERVE. TAP.

What is checked is what a transport could break: answers, streams, refusals before the parser,
clients that leave, and who may connect at all.
"""
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

PROGRAM = sys.argv[1]
PATIENCE = 20


def certificate(folder, name):
    key, cert = os.path.join(folder, name + ".key"), os.path.join(folder, name + ".pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return cert, key


class Server:
    def __init__(self, *flags, context=None, path=None):
        self.context, self.path = context, path
        self.process = subprocess.Popen([PROGRAM, "serve", "--port", "0", "--log-level", "error", *flags],
                                        stdout=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()
        found = re.search(r":(\d+)$", self.line)
        self.port = int(found[1]) if found else None

    def connect(self, context=None):
        if self.path:
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(PATIENCE)
            s.connect(self.path)
        else:
            s = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        context = context or self.context
        return context.wrap_socket(s, server_hostname="localhost") if context else s

    def send(self, text, context=None):
        s = self.connect(context)
        s.sendall(text.encode())
        return s

    def exchange(self, text):
        """All that comes until the server closes."""
        s = self.send(text)
        data = b""
        try:
            while piece := s.recv(65536):
                data += piece
        except ssl.SSLEOFError:
            pass
        s.close()
        return data.decode()

    def get(self, path):
        return self.exchange(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    def metric(self, name):
        return float(re.search(rf"^{name} (\S+)$", self.get("/metrics"), re.M)[1])

    def until(self, name, value):
        end = time.monotonic() + PATIENCE
        while self.metric(name) != value:
            assert time.monotonic() < end, (name, self.metric(name), value)

    def stop(self, status=0):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == status


def post(body, close=True):
    body = json.dumps(body)
    end = "Connection: close\r\n" if close else ""
    return (f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{end}Content-Length: {len(body)}\r\n\r\n{body}")


def check_service(server):
    whole = server.exchange(post({"prompt": "hello"}))
    assert whole.startswith("HTTP/1.1 200") and '"text":"hello"' in whole, whole
    stream = server.exchange(post({"prompt": "hello", "stream": True}))
    assert "text/event-stream" in stream and stream.count("data: ") == 7 and "[DONE]" in stream, stream
    flood = server.exchange(post({"prompt": "@flood", "stream": True, "max_tokens": 40}))
    assert flood.count("x") >= 40 * 16384 and "[DONE]" in flood, len(flood)
    both = server.exchange(post({"prompt": "one"}, close=False) + post({"prompt": "two"}))
    assert both.index('"text":"one"') < both.index('"text":"two"'), both


def check_refusals(server):
    for request, status in [("GET /health HTTP/1.1\r\n\r\n", 400), ("nonsense\r\n\r\n", 400),
                            ("GET /health HTTP/1.1\r\nHost: x\r\nA: " + "b" * 17000 + "\r\n\r\n", 431),
                            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
                            ("GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost : x\r\n\r\n", 200)]:
        answer = server.exchange(request)
        assert answer.startswith(f"HTTP/1.1 {status} "), answer
        assert "<html" not in answer and "application/json" in answer, answer
    assert "HTTP/1.1 400" in answer, answer


def check_leaving(server):
    before = server.metric("gptqt_sequences_cancelled_total")
    for stream in (False, True):
        client = server.send(post({"prompt": "@hold", "stream": stream}))
        server.until("gptqt_requests_running", 1)
        client.close()
        before += 1
        server.until("gptqt_sequences_cancelled_total", before)


def test_tls(folder):
    cert, key = certificate(folder, "good")
    context = ssl.create_default_context(cafile=cert)
    server = Server("--tls-cert", cert, "--tls-key", key, "--header-timeout", "1", context=context)
    assert "https://" in server.line, server.line
    check_service(server)
    check_refusals(server)
    check_leaving(server)
    slow = server.send("GET /")
    assert slow.recv(4096).startswith(b"HTTP/1.1 408"), "slow head"
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        one = ssl.create_default_context(cafile=cert)
        one.minimum_version = one.maximum_version = version
        s = server.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n", one)
        assert s.recv(4096).startswith(b"HTTP/1.1 200"), version
        s.close()
    old = ssl.create_default_context(cafile=cert)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    try:
        server.connect(old)
        raise AssertionError("TLS 1.1 is taken")
    except (ssl.SSLError, ConnectionError):
        pass
    plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"HTTP/1.1 2" not in plain.recv(4096)
    server.stop()


def test_wrong_certificates_are_named(folder):
    cert, key = certificate(folder, "one")
    _, other = certificate(folder, "two")
    for flags, says in [(["--tls-cert", cert], "belong together"), (["--tls-cert", "/nope", "--tls-key", key], "/nope"),
                        (["--tls-cert", cert, "--tls-key", other], "--tls-cert, --tls-key: "),
                        (["--tls-cert", key, "--tls-key", key], "--tls-cert, --tls-key: ")]:
        done = subprocess.run([PROGRAM, "serve", "--port", "0", *flags], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1 and says in done.stderr, (flags, done)


def test_unix_socket(folder):
    path = os.path.join(folder, "s")
    server = Server("--unix-socket", path, path=path)
    assert server.line == f"listening on unix:{path}\n", server.line
    assert os.stat(path).st_mode & 0o777 == 0o600
    check_service(server)
    check_refusals(server)
    check_leaving(server)
    again = subprocess.run([PROGRAM, "serve", "--unix-socket", path], capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 1 and "another server listens" in again.stderr, again
    server.stop()
    assert not os.path.exists(path)


def test_stale_sockets_are_replaced(folder):
    path = os.path.join(folder, "stale")
    server = Server("--unix-socket", path, path=path)
    server.process.kill()
    server.process.wait()
    assert os.path.exists(path)
    server = Server("--unix-socket", path, "--unix-socket-mode", "660", path=path)
    assert os.stat(path).st_mode & 0o777 == 0o660
    check_service(server)
    server.stop()
    open(path, "w").close()
    for where, says in [(path, "is no socket"), (folder + "/no/where", "No such file"), ("x" * 200, "at most")]:
        done = subprocess.run([PROGRAM, "serve", "--unix-socket", where], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1 and says in done.stderr, done
    assert os.path.exists(path), "a file was removed"


TESTS = [test_tls, test_wrong_certificates_are_named, test_unix_socket, test_stale_sockets_are_replaced]
print(f"1..{len(TESTS)}")
failed = 0
for number, test in enumerate(TESTS, 1):
    name = test.__name__.removeprefix("test_")
    if "certificate" in test.__code__.co_names and not shutil.which("openssl"):
        print(f"ok {number} - {name} # SKIP there is no openssl to make a certificate")
        continue
    with tempfile.TemporaryDirectory() as folder:
        try:
            test(folder)
            print(f"ok {number} - {name}", flush=True)
        except Exception as error:  # a test's own failure, whatever it is
            failed += 1
            print(f"not ok {number} - {name}\n# " + repr(error).replace("\n", "\n# "), flush=True)
sys.exit(failed != 0)
