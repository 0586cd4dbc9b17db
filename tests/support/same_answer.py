"""What two servers may answer differently to the same request, and what not.

Equal are statuses, headers, members, texts, tokens and counts. Times, sizes and names of requests only have
to be of the same type, numbers with a fraction and the ranks of unlikely tokens near each other. Where a
request draws tokens at random, only the shape has to be equal.
"""
import base64
import json
import struct

OWN = {"id", "item_id", "created", "created_at", "backend", "system_fingerprint", "weight_bytes", "kv_bytes",
       "predicted_ttft_ms", "cached_tokens", "last_step_age_seconds"}
OWN_HEADERS = {"date", "content-length", "x-request-id", "server-timing", "openai-processing-ms"}
OF_THE_CLOCK = {"retry-after", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"}
ENDS = {"incomplete_details", "stop_reason"}  # null or not, as drawn tokens have it
BY_TOKEN = {"top_logprobs", "prompt_logprobs"}  # their members' names are tokens
NEAR, NEAR_IN_VECTORS = 0.01, 0.002


def events(body):
    """A stream's JSON by choices, whose order among each other is a matter of time, and its other frames."""
    frames = [frame.split("data: ", 1) for frame in body.split("\n\n") if frame]
    found = [(start, json.loads(data) if data.startswith("{") else data) for start, data in frames]

    def choice(frame):
        choices = isinstance(frame[1], dict) and frame[1].get("choices")
        return choices[0]["index"] if choices else 1 << 20

    return [list(frame) for frame in sorted(found, key=choice)]


def metrics(body):
    """Names and labels without their values."""
    lines = [line for line in body.splitlines() if not line.startswith("#") and 'backend="' not in line]
    return sorted(line.rpartition(" ")[0] for line in lines)


def read(answer):
    kind = answer.headers.get("Content-Type", "")
    if kind.startswith("text/event-stream"):
        return events(answer.body)
    if kind.startswith("application/json"):
        return json.loads(answer.body)
    return metrics(answer.body) if "version=0.0.4" in kind else answer.body


def vector(text):
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def kind_of(value):
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def shape(value, path="", name=""):
    """Every place with its type; the elements of a list share one."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ENDS:
                yield from shape(item, f"{path}.{'*' if name in BY_TOKEN or key.isdigit() else key}", key)
    elif isinstance(value, list):
        for item in value:
            yield from shape(item, path + "[]", name)
    yield path, kind_of(value)


def is_near(a, b, name):
    if name == "rank":
        return abs(a - b) <= a // 40
    near = NEAR_IN_VECTORS if name == "embedding" else NEAR
    return isinstance(a, float) and isinstance(b, float) and abs(a - b) <= near


def differences(a, b, path="", name=""):
    if kind_of(a) != kind_of(b):
        yield f"{path}: {a!r} and {b!r}"
    elif name in OWN:
        return
    elif name == "embedding" and isinstance(a, str):
        yield from differences(vector(a), vector(b), path, name)
    elif isinstance(a, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{path}.{key}", key)
    elif isinstance(a, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{path}[{i}]", name)
    elif a != b and not is_near(a, b, name):
        yield f"{path}: {a!r} and {b!r}"


def headers(answer):
    own = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in OWN_HEADERS}
    return {name: "some" if name in OF_THE_CLOCK else value for name, value in own.items()}


def compare(a, b, sampled=False):
    """What differs between two answers, as lines."""
    if a.status != b.status:
        return [f"status {a.status} and {b.status}: {a.body[:200]} and {b.body[:200]}"]
    found = list(differences(headers(a), headers(b), "headers"))
    if sampled:
        return found + sorted(map(str, set(shape(read(a))) ^ set(shape(read(b)))))
    return found + list(differences(read(a), read(b)))
