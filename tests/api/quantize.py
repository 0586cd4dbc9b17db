"""Bad input and bad days of the quantizer: quantize.py FOLDER-OF-GPTQT STORIES

Models, texts, tokenizers and disks that are not what they should be give status 1 and one line that
names the culprit, or a checkpoint that works; a run killed at any moment goes on to the same bytes. TAP.
"""
import functools
import json
import os
import subprocess
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench"))
sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import quality_rows  # noqa: E402
import quantizing  # noqa: E402
from quantizing import count, killed, limited, put, same  # noqa: E402

FOLDER, STORIES = sys.argv[1:3]
QUANTIZE = os.path.join(FOLDER, "gptqt-quantize")
NAN, INF = 0x7FC0, 0x7F80  # bf16, as the model's weights are
MATRIX = "model.layers.4.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
Place = functools.partial(quantizing.Place, FOLDER, STORIES)


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


def a_run_killed_at_any_moment_goes_on_to_the_same_bytes():
    with Place() as p:
        whole = os.path.join(p.path, "whole")
        partial = p.out + ".partial"
        p.quantize(STORIES, out=whole)
        n_kills = 0
        for n in range(1, 60, 4):
            n_kills += killed(p.command(STORIES), lambda limit=n: count(partial) >= limit)
        assert n_kills >= 8, f"killed {n_kills} times only"
        # And while the parts are being joined.
        for name in ("done", "done/model.safetensors"):
            if os.path.exists(partial):
                killed(p.command(STORIES), lambda path=name: os.path.exists(os.path.join(partial, path)))
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


sys.exit(quantizing.run_tests(TESTS))
