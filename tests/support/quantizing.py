"""What the suites of bad days for the quantizer share: a folder for a test, edited models, runs that are
killed or short of room, and lines of TAP."""
import filecmp
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile

STORY = "Once upon a time, there was a little cat who liked to play with the big red ball in the garden. "


class Place:
    """A folder for one test, with a calibration text in it; gptqt and gptqt-quantize are those of a folder."""

    def __init__(self, programs, stories):
        self.gptqt, self.program = os.path.join(programs, "gptqt"), os.path.join(programs, "gptqt-quantize")
        self.stories = stories
        self.folder = tempfile.TemporaryDirectory()
        self.path = self.folder.name
        self.text = self.file("text", STORY * 150)
        self.out = os.path.join(self.path, "out")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.folder.cleanup()

    def file(self, name, content):
        path = os.path.join(self.path, name)
        with open(path, "wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
        return path

    def model(self, edit=None):
        """A copy of the stories model; edit(table, data) changes its weights."""
        path = os.path.join(self.path, "model")
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.stories, path)
        if edit:
            file = os.path.join(path, "model.safetensors")
            with open(file, "rb") as source:
                n = struct.unpack("<Q", source.read(8))[0]
                head, data = source.read(n), bytearray(source.read())
            table = json.loads(head)
            edit(table, data)
            with open(file, "wb") as out:
                out.write(struct.pack("<Q", n) + head + data)
        return path

    def command(self, model, *flags, out=None, text=None):
        return [self.program, model, out or self.out, "--ctx", "64", "--windows", "16", "--calibration", text or self.text,
                *flags]

    def quantize(self, model, *flags, status=0, **more):
        """Standard error's last line."""
        limit = more.pop("limit", None)
        done = subprocess.run(self.command(model, *flags, **more), capture_output=True, text=True, timeout=600,
                              check=False, preexec_fn=limit)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == status, (flags, done.returncode, lines[-3:])
        return lines[-1] if lines else ""

    def refused(self, model, *words, **more):
        said = self.quantize(model, status=1, **more)
        assert said.startswith("gptqt-quantize: ") and all(w in said for w in words), (words, said)
        assert not os.path.exists(more.get("out", self.out)), "something appeared at the output path"

    def perplexity(self, model=None):
        done = subprocess.run([self.gptqt, "eval", model or self.out, "--text", self.text, "--ctx", "128", "--chunks", "8",
                               "--json"], capture_output=True, text=True, timeout=600, check=True)
        return json.loads(done.stdout)["perplexity"]


def put(name, value, where=lambda row, column: True):
    """An edit that sets some elements of a tensor to a bf16 number."""
    def edit(table, data):
        entry = table[name]
        at, cols = entry["data_offsets"][0], entry["shape"][-1]
        for i in range((entry["data_offsets"][1] - at) // 2):
            if where(i // cols, i % cols):
                data[at + 2 * i : at + 2 * i + 2] = struct.pack("<H", value)
    return edit


def same(a, b):
    names = sorted(os.listdir(a))
    return names == sorted(os.listdir(b)) and not filecmp.cmpfiles(a, b, names, shallow=False)[1]


def limited(size):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return limit


def count(folder):
    return sum(len(names) for _, _, names in os.walk(folder))


def killed(command, when):
    """Runs until when() holds and kills; False if the run ended before that."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and not when():
                pass
        finally:
            process.kill()
            process.wait()
    return process.returncode == -signal.SIGKILL


def run_tests(tests):
    """0 when all passed. What a test returns says why it was skipped."""
    print(f"TAP version 13\n1..{len(tests)}")
    failed = 0
    for i, test in enumerate(tests, 1):
        name = test.__name__.replace("_", " ")
        try:
            skipped = test()
            print(f"ok {i} - {name}{f' # SKIP {skipped}' if skipped else ''}", flush=True)
        except Exception as e:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {i} - {name}\n# {type(e).__name__}: {str(e)[:1500]!r}", flush=True)
    return failed > 0
