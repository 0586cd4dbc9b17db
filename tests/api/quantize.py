"""Bad input and bad days of the quantizer: quantize.py FOLDER-OF-GPTQT STORIES

Models, texts, tokenizers and disks that are not what they should be give status 1 and one line that
names the culprit, or a checkpoint that works; a run killed at any moment goes on to the same bytes. TAP.
"""
import filecmp
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench"))
import quality_rows  # noqa: E402

FOLDER, STORIES = sys.argv[1:3]
GPTQT, QUANTIZE = os.path.join(FOLDER, "gptqt"), os.path.join(FOLDER, "gptqt-quantize")
NAN, INF = 0x7FC0, 0x7F80  # bf16, as the model's weights are
MATRIX = "model.layers.4.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
STORY = "Once upon a time, there was a little cat who liked to play with the big red ball in the garden. "


class Place:
    """A folder for one test, with a calibration text in it."""

    def __init__(self):
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
        shutil.copytree(STORIES, path)
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
        return [QUANTIZE, model, out or self.out, "--ctx", "64", "--windows", "16", "--calibration", text or self.text,
                *flags]

    def quantize(self, model, *flags, status=0, **more):
        """Standard error's last line."""
        limit = more.pop("limit", None)
        done = subprocess.run(self.command(model, *flags, **more), capture_output=True, text=True, timeout=120,
                              check=False, preexec_fn=limit)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == status, (flags, done.returncode, lines[-3:])
        return lines[-1] if lines else ""

    def refused(self, model, *words, **more):
        said = self.quantize(model, status=1, **more)
        assert said.startswith("gptqt-quantize: ") and all(w in said for w in words), (words, said)
        assert not os.path.exists(more.get("out", self.out)), "something appeared at the output path"

    def perplexity(self, model=None):
        done = subprocess.run([GPTQT, "eval", model or self.out, "--text", self.text, "--ctx", "128", "--chunks", "8",
                               "--json"], capture_output=True, text=True, timeout=120, check=True)
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


def only(row, column):
    return lambda r, c: (r, c) == (row, column)


def values_that_are_not_finite_are_named_before_the_work():
    with Place() as p:
        for name, value in ((MATRIX, NAN), (MATRIX, INF), ("model.embed_tokens.weight", NAN)):
            p.refused(p.model(put(name, value, only(200, 5))), name, "row 200, column 5", "not finite")
        p.refused(p.model(put(NORM, NAN, only(0, 7))), NORM, "column 7")
        assert not os.path.exists(p.out + ".partial"), "work began"


def values_beyond_fp16_are_named():
    with Place() as p:
        p.refused(p.model(put(MATRIX, 0x7F00, only(3, 7))), MATRIX.rsplit(".", 1)[0], "row 3, column 7", "beyond fp16")


def dead_columns_and_constant_rows_are_no_trouble():
    with Place() as p:
        dead, flat = put(NORM, 0, lambda r, c: c % 5 == 0), put(MATRIX, 0x3D00)
        none = put("model.layers.2.mlp.up_proj.weight", 0)

        def edit(table, data):
            for part in (dead, flat, none):
                part(table, data)
        model = p.model(edit)
        whole = p.perplexity(model)
        for flags in ([], ["--refine", "2"], ["--method", "gptq", "--params", "free", "--group", "64"],
                      ["--method", "rtn"], ["--method", "bcq", "--params", "free"], ["--method", "gptq-bcq", "--params", "free"]):
            p.quantize(model, "--bits", "4", *flags, "--force")
            coded = p.perplexity()
            assert coded < 1.5 * whole, (flags, coded, whole)


def inputs_that_are_all_dead_are_no_trouble():
    with Place() as p:
        model = p.model(put(NORM, 0))
        p.quantize(model, "--bits", "4")
        coded, whole = p.perplexity(), p.perplexity(model)
        assert coded < 1.2 * whole, (coded, whole)


def fewer_tokens_than_columns_are_enough():
    with Place() as p:
        whole = p.perplexity(STORIES)
        for flags in ([], ["--refine", "2", "--static"]):
            p.quantize(STORIES, "--bits", "4", "--windows", "1", "--ctx", "8", *flags, "--force")
            assert p.perplexity() < 1.5 * whole, flags


def texts_that_are_too_short_are_refused():
    with Place() as p:
        p.refused(STORIES, "9 tokens", "64", text=p.file("short", "Once upon a time there was a cat."))
        p.refused(STORIES, "0 tokens", "64", text=p.file("empty", ""))
        p.refused(STORIES, "regular file", text=p.path)
        p.refused(STORIES, "nowhere", text=os.path.join(p.path, "nowhere"))


def tokenizers_that_do_not_fit_are_refused():
    with Place() as p:
        def change(edit):
            model = p.model()
            path = os.path.join(model, "tokenizer.json")
            with open(path, encoding="utf-8") as file:
                parts = json.load(file)
            edit(parts)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(parts, file)
            return model

        def stretch(parts):
            vocab = parts["model"]["vocab"]
            parts["model"]["vocab"] = {t: i + 9000 if i >= 300 else i for t, i in vocab.items()}

        def retype(parts):
            parts["model"]["type"] = "Unigram"
        p.refused(change(stretch), "token", "not in the model's 2048")
        p.refused(change(retype), "tokenizer.json", "Unigram")
        model = p.model()
        with open(os.path.join(model, "tokenizer.json"), "w", encoding="ascii") as file:
            file.write('{"model": ')
        p.refused(model, "tokenizer.json", "JSON")
        os.remove(os.path.join(model, "tokenizer.json"))
        p.refused(model, "tokenizer.json")


def sources_that_are_no_models_are_refused():
    with Place() as p:
        model = p.model()
        weights = os.path.join(model, "model.safetensors")
        with open(weights, "rb") as file:
            good = file.read()
        for content, word in ((os.urandom(5000), "header"), (good[: len(good) // 2], "data"), (b"", "header")):
            p.file("model/model.safetensors", content)
            p.refused(model, "model.safetensors", word)
        os.remove(weights)
        p.refused(model, "model.safetensors")
        p.refused(p.file("x.gguf", os.urandom(5000)), "x.gguf", "magic")
        p.refused(p.file("x", "x"), "neither")
        p.refused(os.path.join(p.path, "nothing"), "nothing")


def a_shape_that_is_wrong_in_a_late_block_shows_at_once():
    with Place() as p:
        model = p.model()
        path = os.path.join(model, "model.safetensors")
        with open(path, "rb") as file:
            content = file.read()
        at = content.index(f'"{MATRIX}"'.encode())
        tail = content[at:].replace(b"[256,256]", b"[128,512]", 1).replace(b"[256, 256]", b"[128, 512]", 1)
        with open(path, "wb") as file:
            file.write(content[:at] + tail)
        p.refused(model, MATRIX, "[128, 512]", "[256, 256]")
        assert not any("layers.0" in name for _, _, names in os.walk(p.out + ".partial") for name in names), "work began"


def an_output_that_cannot_be_is_refused():
    with Place() as p:
        p.refused(STORIES, "no/such", out=os.path.join(p.path, "no", "such"))
        p.refused(STORIES, "text/out", out=os.path.join(p.text, "out"))


def what_tuning_cannot_do_is_told_before_the_work():
    with Place() as p:
        for flags in (["--tune=e2e", "--incoherence=input"], ["--effort=best", "--incoherence=both"],
                      ["--effort=best", "--codec=pvq"], ["--tune=scales", "--layers=0:2"], ["--tune=e2e", "--pow2"],
                      ["--effort=best", "--pow2", "--refine=0"]):
            done = subprocess.run(p.command(STORIES, *flags), capture_output=True, text=True, timeout=120, check=False)
            what = flags[1].split("=", maxsplit=1)[0]
            assert done.returncode == 2 and "--tune" in done.stderr and what in done.stderr, (flags, done.stderr[-300:])
            assert os.listdir(p.path) == ["text"], (flags, os.listdir(p.path))


def try_flags(line, *places):
    """How the quantizer ends on a line without a model: 2 where it refuses the flags, else 1."""
    done = subprocess.run([QUANTIZE, *line.split(), *places], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr.strip().splitlines()[0]


def flags_that_can_do_nothing_are_refused_with_what_they_need():
    idle = {
        "--min-mse": "--method", "--bcq-bias": "--method bcq", "--method=rtn --asymmetric": "--method gptqt",
        "--asymmetric --pow2": "--pow2", "--method=gptq --ranges=4": "--method gptqt",
        "--method=gptq-bcq --params=free --step-bits=4": "--method gptqt", "--method=rtn --weighting=u": "--min-mse",
        "--params=free --scale-bits=4": "--params compact", "--params=free --bias-bits=4": "--params compact",
        "--beam=4": "--codes beam", "--codes=cd --beam=4": "--codes beam", "--mixed-by=kl": "--mixed",
        "--mixed=none --mixed-per=input": "--mixed", "--effort=fast --mixed-by=loss": "--mixed",
        "--effort=normal --learn-clip --mixed-by=loss": "--mixed", "--hessian-groups=2": "--hessian guided",
        "--hessian=fisher --hessian-groups=2": "--hessian guided", "--tune-steps=4": "--tune scales",
        "--tune=block --tune-rate=0.1": "--tune scales", "--effort=best --tune=none --tune-ctx=64": "--tune scales",
        "--tune-tokens=64": "--tune scales", "--tune-stop-after=2": "--tune scales", "-f TEXT --seed=1": "--calibration",
        "--tune=e2e --tune-from=DIR --bits=2": "--tune-from", "--tune=e2e --tune-from=DIR --windows=8": "--tune-from",
        "--tune=e2e --tune-from=DIR --effort=normal": "--tune-from", "--merge --bits=2": "--merge",
        "--merge --refine=2": "--merge",
    }
    for line, needs in idle.items():
        status, said = try_flags(line, "MODEL", "OUT")
        flag = line.split()[-1].split("=", maxsplit=1)[0]
        flag = "--asymmetric" if "--pow2" in line else flag
        assert status == 2 and f"{flag} has no effect" in said and needs in said, (line, status, said)
    for line in ("--method=rtn --min-mse --weighting=none", "--method=bcq --params=free --bcq-bias", "--codes=beam --beam=4",
                 "--effort=normal --mixed-by=kl --mixed-per=input", "--mixed=2.5 --mixed-by=loss", "--seed=1",
                 "--hessian=guided --hessian-groups=2", "--effort=best --tune-steps=4", "-f TEXT --seed=1 --tune=e2e",
                 "--tune=scales --tune-from=DIR --tune-rate=0.1 -f TEXT --seed=1 --threads=1 --force --json",
                 "--merge --force --json --threads=1"):
        status, said = try_flags(line, os.path.join(FOLDER, "nothing"), os.path.join(FOLDER, "nothing", "out"))
        assert status == 1, (line, said)


def what_an_effort_stands_in_the_way_of_is_told_with_the_way_out():
    for line, words in (("--effort=fast --norm-tweak=fit", ("--norm-tweak", "--effort fast", "--sequential")),
                        ("--effort=fast --target=output", ("--target", "--effort fast", "--sequential")),
                        ("--effort=normal --hessian=guided --norm-tweak=fit", ("--effort normal", "--sequential")),
                        ("--effort=fast --pow2", ("--effort fast", "--pow2", "--refine 0"))):
        status, said = try_flags(line, "MODEL", "OUT")
        assert status == 2 and all(word in said for word in words) and "static" not in said, (line, said)
        status, said = try_flags(f"{line} --sequential --refine=0", os.path.join(FOLDER, "nothing"), "OUT")
        assert status == 1, (line, said)


def every_row_of_the_table_of_methods_is_accepted():
    rows = [row for model in quality_rows.for_table() for row in quality_rows.rows(model) if row.bits]
    lines = {" ".join(row.flags) + ("" if row.own_text else " --calibration=TEXT") for row in rows}
    assert len(lines) > 100, len(lines)
    for line in sorted(lines):
        status, said = try_flags(f"--bits=3 --output-bits=16 {line}", os.path.join(FOLDER, "nothing"), "OUT")
        assert status == 1, (line, said)


def same(a, b):
    names = sorted(os.listdir(a))
    return names == sorted(os.listdir(b)) and not filecmp.cmpfiles(a, b, names, shallow=False)[1]


def limited(size):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return limit


def a_full_disk_is_told_and_the_run_goes_on_afterwards():
    with Place() as p:
        whole = os.path.join(p.path, "whole")
        p.quantize(STORIES, out=whole)
        # Nothing fits; no matrix; not the larger ones; not the embedding; not the joined file.
        for size in (0, 5000, 40000, 200000, 1400000):
            said = p.quantize(STORIES, status=1, limit=limited(size))
            assert p.out in said and ("too large" in said or "No space" in said), said
            assert not os.path.exists(p.out)
        p.quantize(STORIES)
        assert same(whole, p.out), "other bytes"


def a_disk_that_fills_up_is_told():
    with Place() as p:
        disk = os.path.join(p.path, "disk")
        os.mkdir(disk)
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True, check=False)
        if mount.returncode:
            return "no right to mount a small disk"
        try:
            out = os.path.join(disk, "out")
            said = p.quantize(STORIES, status=1, out=out)
            assert "No space left" in said and out in said, said
            assert not os.path.exists(out)
        finally:
            subprocess.run(["umount", disk], check=True)
    return None


def count(folder):
    return sum(len(names) for _, _, names in os.walk(folder))


def killed(p, when):
    """Runs until when() holds and kills; False if the run ended before that."""
    process = subprocess.Popen(p.command(STORIES), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not when():
            pass
    finally:
        process.kill()
        process.wait()
    return process.returncode == -signal.SIGKILL


def a_run_killed_at_any_moment_goes_on_to_the_same_bytes():
    with Place() as p:
        whole = os.path.join(p.path, "whole")
        partial = p.out + ".partial"
        p.quantize(STORIES, out=whole)
        n_kills = 0
        for n in range(1, 60, 4):
            n_kills += killed(p, lambda limit=n: count(partial) >= limit)
        assert n_kills >= 8, f"killed {n_kills} times only"
        # And while the parts are being joined.
        for name in ("done", "done/model.safetensors"):
            if os.path.exists(partial):
                killed(p, lambda path=name: os.path.exists(os.path.join(partial, path)))
        p.quantize(STORIES)
        assert same(whole, p.out), "other bytes"
        assert not os.path.exists(partial)


TESTS = [
    values_that_are_not_finite_are_named_before_the_work,
    values_beyond_fp16_are_named,
    dead_columns_and_constant_rows_are_no_trouble,
    inputs_that_are_all_dead_are_no_trouble,
    fewer_tokens_than_columns_are_enough,
    texts_that_are_too_short_are_refused,
    tokenizers_that_do_not_fit_are_refused,
    sources_that_are_no_models_are_refused,
    a_shape_that_is_wrong_in_a_late_block_shows_at_once,
    an_output_that_cannot_be_is_refused,
    what_tuning_cannot_do_is_told_before_the_work,
    flags_that_can_do_nothing_are_refused_with_what_they_need,
    what_an_effort_stands_in_the_way_of_is_told_with_the_way_out,
    every_row_of_the_table_of_methods_is_accepted,
    a_full_disk_is_told_and_the_run_goes_on_afterwards,
    a_disk_that_fills_up_is_told,
    a_run_killed_at_any_moment_goes_on_to_the_same_bytes,
]


def main():
    print(f"TAP version 13\n1..{len(TESTS)}")
    failed = 0
    for i, test in enumerate(TESTS, 1):
        name = test.__name__.replace("_", " ")
        try:
            skipped = test()
            print(f"ok {i} - {name}{f' # SKIP {skipped}' if skipped else ''}", flush=True)
        except Exception as e:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {i} - {name}\n# {type(e).__name__}: {str(e)[:1500]!r}", flush=True)
    return failed > 0


sys.exit(main())
