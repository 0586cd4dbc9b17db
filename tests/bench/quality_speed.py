"""Decode speed of each stored form. Rows share it: how codes were found does not change how fast they run."""
import hashlib
import json
import os
import shutil
import statistics
import time

import quality_measure as measure

ROUNDS = 5
# What decides how a matrix is stored and run, with the default. --codec is undone when a model is loaded; blocks
# of --pow2 are compact ones like others, but for the level `ref`.
FORM = {"--params": "compact", "--group": "16", "--scale-bits": "4", "--bias-bits": "5", "--outliers": "0",
        "--outlier-form": "sparse", "--incoherence": "none", "--act-bits": "16"}


def form_of(row):
    """The flags of the row's form that are not the defaults; None where each matrix has bits of its own."""
    mixes = "--mixed" in row.flags or row.bits < 4 and any(e in row.flags for e in ("normal", "best"))
    if mixes or not row.bits:
        return None
    flags, found = row.flags, []
    for name, default in FORM.items():
        if name not in flags:
            continue
        if flags[flags.index(name) + 1] != default:
            found += [name, flags[flags.index(name) + 1]]
    return found


def key(row):
    form = form_of(row)
    return None if form is None else f"speed {row.model.name} {row.bits} {' '.join(form)}".rstrip()


def dense(model):
    """A model in 16 bits: a block-quantized GGUF would be widened to 32, which no one would serve."""
    if not model.path.endswith(".gguf"):
        return model.path
    path = os.path.join(measure.WORK, f"{model.name}-f16.gguf")
    if not os.path.exists(path):
        measure.run([measure.GPTQT, "export", model.path, path])
    return path


def rate(path):
    command = [measure.GPTQT, "bench", path, "--json", "--prompt", "16", "--gen", "96"]
    return json.loads(measure.run(command)[0])["decode_tokens_per_second"]


def rounds(model, path):
    """Both, one after the other: a shared machine changes from minute to minute."""
    ratios, rates = [], []
    for _ in range(ROUNDS):
        rates.append(rate(path))
        ratios.append(rates[-1] / rate(dense(model)))
    return {"ratio": statistics.median(ratios), "tokens_per_second": statistics.median(rates), "rounds": ROUNDS}


def quantize(row, out):
    """Any codes in this form, the soonest found; the output matrix as the program stores it by default."""
    command = [measure.QUANTIZE, row.model.path, out, "--bits", str(row.bits), *form_of(row), "--method", "rtn",
               "--refine", "0", "--static", "--windows", "1", "--ctx", "256", "--calibration", row.model.calibration]
    if not os.path.isdir(out):
        measure.run(command)


def measure_all(rows, store, deadline):
    """One time for each form that has none by this program."""
    failed = 0
    for row in rows:
        name = key(row)
        if not name or not row.model.here() or store.results.get(name, {}).get("program") == store.program:
            continue
        if time.monotonic() > deadline:
            break
        out = os.path.join(measure.WORK, "speed-" + hashlib.sha256(name.encode()).hexdigest()[:16])
        result = {"program": store.program, "commit": measure.commit(), "machine": measure.machine()}
        try:
            quantize(row, out)
            result |= rounds(row.model, out)
            print(f"{name}: {result['ratio']:.2f}, {result['tokens_per_second']:.0f} tokens/s", flush=True)
        except measure.Failed as e:
            print(f"{name}: {e}", flush=True)
            failed += 1
            continue
        finally:
            shutil.rmtree(out, ignore_errors=True)
        store.keep(name, result)
    return failed
