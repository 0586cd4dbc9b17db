"""Shows that the load generator sees every fault: liar.py LOAD

A server of a few lines that answers well, but for every seventh generation, which it spoils in
one way at a time. A generator that does not tell is no test of the real server."""
import json
import re
import socket
import subprocess
import sys
import threading

FAULTS = {
    "honest": "ok",
    "text of another": "wrong",
    "id of another": "wrong",
    "half a stream": "lost",
    "no DONE": "wrong",
    "events of two streams": "wrong",
    "no answer": "lost",
    "usage": "wrong",
    "refusal without Retry-After": "wrong",
    "bytes behind the end": "wrong",
    "status": "wrong",
    "a bad request is served": "wrong",
}


def answer_of(prompt, n):
    return [f" {prompt[-12 - i:][:9]}{i}" for i in range(n)]


class Liar:
    def __init__(self, fault):
        self.fault, self.count, self.lock = fault, 0, threading.Lock()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def spoils(self):
        with self.lock:
            self.count += 1
            # The serial pass, which learns the right answers, is left alone.
            return self.count > 40 and self.count % 7 == 0

    def serve(self, connection):
        stream = connection.makefile("rwb")
        try:
            while self.one(stream):
                stream.flush()
        except (OSError, ValueError):
            pass
        finally:
            # The file shares the socket: without a shutdown the peer would never see an end.
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()

    def one(self, stream):
        line = stream.readline().decode()
        if not line:
            return False
        headers = {}
        while (header := stream.readline().decode().strip()):
            name, value = header.split(":", 1)
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        rid = headers.get("x-request-id", "")
        if line.startswith("GET /health"):
            return self.reply(stream, rid, "{}")
        try:
            asked = json.loads(body)
            prompt = asked["prompt"]
            good = isinstance(prompt, str) and set(asked) <= {
                "prompt", "max_tokens", "temperature", "ignore_eos", "stream", "stream_options", "echo"}
            good = good and isinstance(asked["max_tokens"], int) and asked["temperature"] == 0
        except (ValueError, KeyError, TypeError):
            good = False
        if not good and self.fault == "a bad request is served":
            return self.reply(stream, rid, "{}")
        if not good:
            status = 404 if "no such" in line + body.decode() or "/no/" in line else 400
            status = 405 if line.startswith("DELETE") else status
            return self.reply(stream, rid, '{"error":{"message":"no"}}', status)
        return self.generate(stream, rid, asked, self.fault if self.spoils() else "")

    def generate(self, stream, rid, asked, fault):
        n, prompt = asked["max_tokens"], asked["prompt"]
        tokens = answer_of(prompt if fault != "text of another" else prompt[:-9] + "something", n)
        if fault == "text of another":
            prompt = "x" + prompt
        if fault == "id of another":
            rid += "0"
        if fault == "no answer":
            return False
        if fault == "refusal without Retry-After":
            return self.reply(stream, rid, '{"error":{"message":"full"}}', 503)
        if fault == "status":
            return self.reply(stream, rid, '{"error":{"message":"bug"}}', 500)
        usage = {"prompt_tokens": 3, "completion_tokens": n + (fault == "usage")}
        if not asked.get("stream"):
            text = (prompt if asked.get("echo") else "") + "".join(tokens)
            choice = {"text": text, "finish_reason": "length"}
            return self.reply(stream, rid, self.dump({"id": "1", "choices": [choice], "usage": usage}),
                              more="late" if fault == "bytes behind the end" else "")
        stream.write(f"HTTP/1.1 200 OK\r\nX-Request-Id: {rid}\r\nContent-Type: text/event-stream\r\n"
                     "Transfer-Encoding: chunked\r\n\r\n".encode())
        for i, token in enumerate(tokens):
            if fault == "half a stream" and i == n // 2:
                stream.flush()
                return False
            name = "2" if fault == "events of two streams" and i == n // 2 else "1"
            self.event(stream, {"id": name, "choices": [{"text": token, "finish_reason": None}]})
        self.event(stream, {"id": "1", "choices": [{"text": "", "finish_reason": "length"}]})
        self.event(stream, {"id": "1", "choices": [], "usage": usage})
        if fault != "no DONE":
            self.chunk(stream, "data: [DONE]\n\n")
        stream.write(b"0\r\n\r\n" + (b"late" if fault == "bytes behind the end" else b""))
        return True

    @staticmethod
    def dump(value):
        return json.dumps(value, separators=(",", ":"))

    def event(self, stream, value):
        self.chunk(stream, f"data: {self.dump(value)}\n\n")

    @staticmethod
    def chunk(stream, text):
        stream.write(f"{len(text):x}\r\n{text}\r\n".encode())

    @staticmethod
    def reply(stream, rid, body, status=200, more=""):
        stream.write(f"HTTP/1.1 {status} X\r\nX-Request-Id: {rid}\r\nContent-Length: {len(body)}"
                     f"\r\n\r\n{body}{more}".encode())
        return True


def main(load):
    failed = 0
    print(f"1..{len(FAULTS)}")
    for i, (fault, outcome) in enumerate(FAULTS.items(), 1):
        liar = Liar(fault)
        run = subprocess.run(
            [load, "--json", "--strict", "--requests", "300", "--seconds", "20", "--clients", "4", "--subjects", "8",
             "--mix", "health=1,completion=2,stream=3,echo=2,slow=1,cancel=1,bad=1",
             f"http://127.0.0.1:{liar.port}"], capture_output=True, text=True, timeout=60, check=False)
        liar.socket.close()
        result = json.loads(run.stdout) if run.stdout else {}
        faults = result.get("lost", 0) + result.get("wrong", 0)
        asked = sum(result.get(k, 0) for k in ("ok", "refused", "cancelled", "lost", "wrong"))
        if outcome == "ok":
            good = run.returncode == 0 and faults == 0 and asked >= 300
        else:
            good = run.returncode == 1 and result.get(outcome, 0) > 3
        failed += not good
        print(f"{'ok' if good else 'not ok'} {i} - {fault}: {outcome}")
        if not good:
            print("#", run.returncode, run.stdout, re.sub("^", "# ", run.stderr, flags=re.M))
    return 1 if failed else 0


sys.exit(main(sys.argv[1]))
