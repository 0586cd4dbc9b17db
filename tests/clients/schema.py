"""schemathesis against /openapi.json and the null engine: schema.py

It makes requests of all kinds out of the document, right and wrong ones, and holds the answers
against it: no status 5xx, no status or content type that is not declared, no body or header
against its schema, no wrong request that is taken. SCHEMA_SEED and SCHEMA_SECONDS vary a run.
"""
import json
import os
import re
import subprocess
import sys
import tempfile

from common import Server, run_tests

SEED = os.environ.get("SCHEMA_SEED", "1")
SECONDS = os.environ.get("SCHEMA_SECONDS", "75")
CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
          "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance")
server = None


def schemathesis(location, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [os.path.join(os.path.dirname(sys.executable), "st"), "run", location, "--checks", CHECKS, "--seed", SEED,
             "--no-color", "--request-timeout", "30", *arguments],
            cwd=folder, capture_output=True, text=True, timeout=500)


def every_answer_is_as_the_document_says():
    done = schemathesis(server.address + "/openapi.json", "--max-time", SECONDS, "--continue-on-failure")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    print(f"# {cases[0]}")
    # At least the deterministic phase of each of the document's operations.
    assert cases[1] == cases[2] and int(cases[1]) > 1000, cases[0]


def nothing_is_left_behind():
    assert json.loads(server.get("/health"))["running"] == 0
    answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    assert answer["usage"]["completion_tokens"] == 3
    assert server.end() == 0


def a_wrong_document_would_be_noticed():
    with Server("--engine", "null", "--log-level", "error") as other, \
            tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        document = json.loads(other.get("/openapi.json"))
        answer = document["paths"]["/version"]["get"]["responses"]["200"]["content"]["application/json"]
        answer["schema"] = {"type": "object", "required": ["no_such_field"]}
        json.dump(document, f)
        f.flush()
        done = schemathesis(f.name, "--url", other.address, "--include-path", "/version", "-n", "3")
        assert done.returncode == 1 and "no_such_field" in done.stdout, done.stdout[-2000:]


with Server("--engine", "null", "--log-level", "error") as server:
    status = run_tests([every_answer_is_as_the_document_says, nothing_is_left_behind,
                        a_wrong_document_would_be_noticed])
sys.exit(status)
