"""Counts the tests of a meson run: summary.py TESTLOG.json STATUS

Criterion and the kernel checker print TAP, one line a test; a program that printed none (it
crashed, or is a plain check) counts as one test by its exit status. Skipped tests are named.
The last line is 'N passed, N failed'; the exit status is 1 when a test failed or none ran.
"""
import json
import os
import re
import sys

LINE = re.compile(r"^(ok|not ok)\b\s*(?:\d+)?\s*-?\s*(.*)$")


def main(path, status):
    passed, failed, skipped = 0, [], []
    records = open(path, encoding="utf-8") if os.path.exists(path) else []
    if not records:
        failed.append("no test ran")
    for record in map(json.loads, records):
        lines = [m for m in map(LINE.match, record.get("stdout", "").splitlines()) if m]
        good = record["result"] in ("OK", "EXPECTEDFAIL", "SKIP")
        for verdict, text in (m.groups() for m in lines):
            name = f"{record['name']}: {text}"
            if verdict == "not ok":
                failed.append(name)
            elif "# SKIP" in text.upper():
                skipped.append(name)
            else:
                passed += 1
        if record["result"] == "SKIP" and not lines:
            skipped.append(record["name"])
        elif good and not lines:
            passed += 1
        elif not good and not any(m[1] == "not ok" for m in lines):
            failed.append(f"{record['name']}: {record['result']}")
    for name in skipped:
        print("skipped:", name)
    for name in failed:
        print("failed:", name)
    if status and not failed:
        failed.append(f"meson test: status {status}")
    print(f"{len(skipped)} skipped")
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


sys.exit(main(sys.argv[1], int(sys.argv[2])))
