"""Runs the programs for one row of the table of quantization methods, and keeps the results."""
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHARED = os.environ.get("GPTQT_SHARED", os.path.join(ROOT, "..", "shared"))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
GPTQT = os.path.join(BUILD, "server", "gptqt")
QUANTIZE = os.path.join(BUILD, "server", "gptqt-quantize")
WORK = os.path.join(BUILD, "quality")
RESULTS = os.path.join(ROOT, "tests", "bench", "quality_results.json")
BASE_CHUNKS = 64  # of the original's distributions this many windows are kept: 6.4 GB for SmolLM2's longer text


def machine():
    with open("/proc/cpuinfo", encoding="ascii") as info:
        text = info.read()
    names = {line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")}
    flags = {word for line in text.splitlines() if line.startswith("flags") for word in line.split()}
    vectors = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f in flags]
    return f"{os.cpu_count()} CPUs, {' '.join(names)} ({', '.join(vectors)}), Linux {platform.release()}"


class Failed(Exception):
    """A program ended with a message."""


class OutOfTime(Exception):
    """The time was up; what was spent until then is in the arguments."""


def run(command, seconds=1e9):
    """(standard output, {wall, cpu, mib}) of a program; Failed with its last line if it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=err)  # pylint: disable=consider-using-with
        alarm = threading.Timer(min(seconds, 1e6), process.terminate)
        alarm.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            alarm.cancel()
        spent = {"wall": time.monotonic() - started, "cpu": usage.ru_utime + usage.ru_stime,
                 "mib": usage.ru_maxrss / 1024}
        if spent["wall"] >= seconds and process.returncode:
            raise OutOfTime(spent)
        err.seek(0)
        lines = [l for l in err.read().decode(errors="replace").splitlines() if l.strip()]
        if process.returncode:
            raise Failed((lines or ["no message"])[0 if process.returncode == 2 else -1][:200])
        out.seek(0)
        return out.read().decode(), spent


_HELP = []


def missing_flag(flags):
    """The first of them that the quantizer does not have, or a choice of it that its help does not name."""
    if not _HELP:
        text = subprocess.run([QUANTIZE, "--help"], capture_output=True, text=True, check=True).stdout
        _HELP.append(text)
    for flag in flags:
        if flag.startswith("--") and not re.search(rf"{flag}\b(?!-)", _HELP[0]):
            return flag
    return None


def program():
    with open(QUANTIZE, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:12]


def commit():
    text = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True,
                          check=False)
    return text.stdout.strip() or "unknown"


class Store:
    """Results by key, in a file of the repository that is replaced whole. Several runs may share it."""

    def __init__(self):
        os.makedirs(WORK, exist_ok=True)
        self.path = RESULTS
        self.program = program()
        self.results = {}
        self.load()

    def load(self):
        if os.path.exists(self.path):
            with open(self.path, encoding="ascii") as file:
                self.results = json.load(file)

    def keep(self, key, result):
        with open(os.path.join(WORK, "results.lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.load()
            self.results[key] = result
            # A line each, so that versions of the file can be compared and merged.
            lines = [f" {json.dumps(k)}: {json.dumps(r, sort_keys=True)}" for k, r in sorted(self.results.items())]
            with open(self.path + ".tmp", "w", encoding="ascii") as out:
                out.write("{\n" + ",\n".join(lines) + "\n}\n")
            os.replace(self.path + ".tmp", self.path)

    def get(self, row):
        return self.results.get(row.key(), {})

    def has(self, row, options):
        """Nothing of it is left to measure."""
        r = self.get(row)
        if r.get("program") != self.program and not options.keep:
            return False
        if r.get("failed"):
            return not options.retry
        return (
            "eval" in r
            and ("long" in r or not (options.long and row.long and row.model.long_chunks))
        )

    def put(self, row, result):
        result.update(model=row.model.name, section=row.section, label=row.label, n_bits=row.bits,
                      flags=row.flags, own_text=row.own_text)
        self.keep(row.key(), result)


def linear_weights(facts):
    """How many weights the blocks' matrices have, from what `gptqt inspect` tells of a Llama."""
    s = facts["shapes"]
    q, kv = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    return s["layers"] * (s["hidden"] * (2 * q + 2 * kv) + 3 * s["hidden"] * s["intermediate"])


def stored_bits(path, facts):
    """Bits a weight: every byte that is stored for the blocks' matrices, whatever it is called."""
    total = 0
    for name in os.listdir(path):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(path, name), "rb") as file:
            head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        for tensor, entry in head.items():
            if ".self_attn." in tensor or ".mlp." in tensor:
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return 8 * total / linear_weights(facts)


def inspect(path):
    return json.loads(run([GPTQT, "inspect", path, "--json"])[0])


def evaluate(model, path, text=None, chunks=None):
    text, chunks = text or model.text, model.chunks if chunks is None else chunks
    command = [GPTQT, "eval", path, "--text", text, "--ctx", str(model.ctx), "--json"]
    if chunks:
        command += ["--chunks", str(chunks)]
    if path == model.path:
        return json.loads(run(command)[0])
    if not chunks or chunks > BASE_CHUNKS:
        return json.loads(run([*command, "--against", model.path])[0])
    base = os.path.join(WORK, f"{model.name}-{os.path.basename(text)}-{chunks}.base")
    if not os.path.exists(base):
        command[2] = model.path
        run([*command, "--save-base", base])
        command[2] = path
    return json.loads(run([*command, "--base", base])[0])


def quantize(row, out, result, seconds):
    """A run that was stopped goes on where it was, and its time counts."""
    # The output matrix stays as it is, whatever the default: the rows are about the blocks' matrices.
    command = [QUANTIZE, row.model.path, out, "--bits", str(row.bits), "--output-bits", "16", *row.flags]
    if not row.own_text:
        command += ["--calibration", row.model.calibration]
    whole_blocks = {"--learn-transform", "--hessian", "--learn-clip", "--tune"} & set(row.flags)
    if row.model.common and "--static" in row.flags and not whole_blocks and not missing_flag(["--moments"]):
        # The original's second moments are the same for all of these rows; methods that look at whole blocks
        # need its states as well.
        command += ["--moments", os.path.join(WORK, f"{row.model.name}-moments")]
    before = result.pop("stopped", {"wall": 0, "cpu": 0, "mib": 0})
    try:
        _, spent = run(command, seconds)
    except OutOfTime as e:
        spent = e.args[0]
        result["stopped"] = {"wall": before["wall"] + spent["wall"], "cpu": before["cpu"] + spent["cpu"],
                             "mib": max(before["mib"], spent["mib"])}
        raise
    result["quantize"] = {"wall": before["wall"] + spent["wall"], "cpu": before["cpu"] + spent["cpu"],
                          "mib": max(before["mib"], spent["mib"]), "stops": before["wall"] > 0}


def judge(row, path, result, options):
    model = row.model
    result["eval"] = evaluate(model, path)
    if model.other and os.path.exists(model.other):
        result["other"] = evaluate(model, path, model.other, model.other_chunks)
    if options.long and row.long and model.long_chunks:
        result["long"] = evaluate(model, path, chunks=model.long_chunks)


def fresh_result(row, store, options):
    """What is left of an earlier result: nothing of another program's, unless that shall count."""
    result = store.get(row)
    same = result.get("program") == store.program
    if not same and not options.keep:
        return {}
    if result.get("failed") and options.retry:
        return {"stopped": result["stopped"]} if "stopped" in result else {}
    return result


def place_of(row):
    return os.path.join(WORK, hashlib.sha256(row.key().encode()).hexdigest()[:16])


def claim(row):
    """A file that keeps other runs off the row until it is closed; None where another has it."""
    lock = open(place_of(row) + ".lock", "w", encoding="ascii")  # pylint: disable=consider-using-with
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def begin(out, program):
    """A run that was cut off goes on only where the same program began it: another's half would count as this one's."""
    marker = out + ".program"
    if os.path.exists(marker):
        with open(marker, encoding="ascii") as file:
            if file.read() == program:
                return
    for left in ("", ".partial", ".untuned", ".untuned.partial"):
        shutil.rmtree(out + left, ignore_errors=True)
    if os.path.exists(out + ".tune"):
        os.remove(out + ".tune")
    with open(marker, "w", encoding="ascii") as file:
        file.write(program)


def measure(row, store, options, seconds):
    """The result, also of a row that failed; None when the time was up."""
    result = fresh_result(row, store, options)
    out = place_of(row)
    begin(out, store.program)
    result.update(program=store.program, commit=commit(), date=time.strftime("%Y-%m-%d"), machine=machine(),
                  load=os.getloadavg()[0])
    try:
        if row.bits and not os.path.isdir(out):
            quantize(row, out, result, seconds)
        facts = inspect(row.model.path)
        result["bits"] = stored_bits(out, facts) if row.bits else facts["bits_per_weight"]
        judge(row, out if row.bits else row.model.path, result, options)
    except OutOfTime:
        store.put(row, result)
        return None
    except Failed as e:
        result["failed"] = str(e)
    store.put(row, result)
    shutil.rmtree(out, ignore_errors=True)
    os.remove(out + ".program")
    return result
